// How the list came about, from left to right: who asks, the two towers, the candidates, the list.

import { html } from "./vendor/preact-htm.js";

const BARS = 64; // numbers of the query vector that are drawn
const TOWER = "M9 44V20H13V12H17V6H31V12H35V20H39V44Z";
const WINDOWS = "M18 24h3v5h-3zM27 24h3v5h-3zM18 33h3v5h-3zM27 33h3v5h-3zM22 14h4v5h-4z";

export function Towers({ answer, query, choices }) {
  // The steps before the merge are the sources.
  const sources = answer?.stages.findIndex((stage) => stage.name === "merge") ?? 0;
  const merged = answer?.stages[sources].candidates;
  const [count, asks] = asking(answer);
  const dim = query?.vector.length;
  return html`
    <ol class="flow" aria-label="How the list came about">
      <li><b>${count}</b><span>${asks}</span></li>
      <li><${Tower} kind="query" /><span>query tower</span></li>
      <li class="wide"><${Bars} vector=${query?.vector ?? []} />
        <span>query vector${dim && (dim > BARS ? `, ${BARS} of its ${dim} numbers` : `, ${dim} numbers`)}</span>
      </li>
      <li class="meets"><${Tower} kind="item" />
        <span>item tower, ${choices ? choices.num_items.toLocaleString("en") : "all"} item vectors</span>
      </li>
      <li><b>${merged?.toLocaleString("en") ?? "–"}</b>
        <span>${sources > 1 ? `candidates of ${sources} sources` : "candidates"}</span>
      </li>
      <li><b>${answer?.items.length ?? "–"}</b>
        <span>${answer ? `shown, after ${answer.batch.ms.toFixed(0)} ms` : "shown"}</span>
      </li>
    </ol>
  `;
}

/** How many titles the query tower reads, as [count, description]. */
function asking(answer) {
  const { user, search } = answer?.asked ?? {};
  const known = answer?.history.length ?? 0;
  // An answer names the newest 100 titles of a history.
  const count = known >= 100 ? "100+" : known;
  const text = search && !answer.unread.includes("search_text") ? " and a search text" : "";
  if (user) return [count, `titles of user ${user}${text}`];
  return [count, `${known === 1 ? "title" : "titles"} you like${text}`];
}

function Tower({ kind }) {
  return html`<svg class="tower ${kind}" viewBox="0 0 48 46" aria-hidden="true">
    <path d=${TOWER} /><path class="windows" d=${WINDOWS} />
  </svg>`;
}

/** The first numbers of a vector as bars, positive ones upwards. */
function Bars({ vector }) {
  const shown = Array.from({ length: Math.min(BARS, vector.length || BARS) }, (_, i) => vector[i] ?? 0);
  const most = Math.max(...shown.map(Math.abs)) || 1;
  return html`<svg class="vector" viewBox="0 -24 ${4 * shown.length} 48" preserveAspectRatio="none" aria-hidden="true">
    ${shown.map((value, i) => html`
      <rect key=${i} class=${value < 0 ? "minus" : ""} x=${4 * i + 0.5} y="-23" width="3" height="23"
        style=${{ transform: `scaleY(${Math.abs(value / most) < 0.02 ? 0.02 : value / most})` }} />`)}
  </svg>`;
}
