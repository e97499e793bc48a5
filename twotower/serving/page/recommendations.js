// The list, and why each title is on it.

import { html } from "./vendor/preact-htm.js";
import { nameOf } from "./picks.js";

export function Recommendations({ answer, cards, busy, like, exclude }) {
  const items = answer?.items ?? [];
  const sources = answer ? [...new Set(items.flatMap((item) => Object.keys(item.sources)))] : [];
  return html`
    <section aria-labelledby="list" aria-busy=${busy}>
      <h2 id="list" tabindex="-1">Recommendations</h2>
      <p role="status" class="small">${summary(answer)}</p>
      ${items.length > 0 && html`<p class="small">
        Below each title: ${items.some((item) => item.because) && "the title of the history that it is nearest to, and "}
        its rank and score at each source that found it.
      </p>`}
      <ol class="list">
        ${items.map((item) => html`
          <li key=${item.item_id}>
            <div class="what">
              <strong dir="auto">${nameOf(item)}</strong>
              ${item.genres?.length > 0 && html` <span class="small">${item.genres.join(", ")}</span>`}
              ${item.because && html`<p class="small why">
                Nearest to <em dir="auto">${nameOf(cards[item.because] ?? { item_id: item.because })}</em>
              </p>`}
              <p class="small why">
                ${sources.filter((name) => item.sources[name]).map((name) => html`
                  <span class="source" key=${name}>${name} #${item.sources[name].rank} <i>${short(item.sources[name].score)}</i></span> `)}
              </p>
            </div>
            <div class="row">
              <button type="button" aria-label=${`Like ${nameOf(item)}`} onClick=${() => like(item)}>Like</button>
              <button type="button" aria-label=${`Leave out ${nameOf(item)}`} onClick=${() => exclude(item)}>Leave out</button>
            </div>
          </li>`)}
      </ol>
    </section>
  `;
}

function summary(answer) {
  if (!answer) return "Waiting for the first list.";
  const parts = [`${answer.items.length} titles of the funnel ${answer.funnel}.`];
  if (answer.fallback) parts.push("The sources found nothing that is left, so the fallback answered.");
  if (answer.items.length) parts.push(`First: ${nameOf(answer.items[0])}.`);
  else parts.push("Nothing is left: allow more genres, or leave out fewer titles.");
  if (answer.unknown.length) parts.push(`Not known to the model: ${answer.unknown.join(", ")}.`);
  if (answer.unread.length) parts.push(`Not read by this funnel: ${answer.unread.join(", ")}.`);
  const missing = Object.entries(answer.missing);
  if (missing.length) parts.push(`Without ${missing.map(([n, why]) => `${n} (${why})`).join(", ")}.`);
  return parts.join(" ");
}

/** A score with three significant digits, or all those before the point. */
function short(score) {
  return Math.abs(score) < 100 ? Number(score.toPrecision(3)).toString() : Math.round(score).toLocaleString("en");
}
