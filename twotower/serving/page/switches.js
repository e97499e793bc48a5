// What a request may choose beside its history.

import { html } from "./vendor/preact-htm.js";
import { nameOf } from "./picks.js";
import { MAX_K, OF_FUNNEL } from "./state.js";

// On a phone the switches start closed, so that the list is not far below.
const WIDE = matchMedia("(min-width: 48rem)").matches;

export function Switches({ state, change, cards, choices }) {
  const funnels = choices?.funnels ?? {};
  const name = state.funnel || choices?.default_funnel;
  const funnel = Object.hasOwn(funnels, name) ? funnels[name] : null;
  const indexes = [...new Set([...(choices?.indexes ?? []), state.index])].filter(Boolean);
  const objectives = funnel?.objectives ?? [];
  const own = funnel?.sources ?? [];
  // With those of an address that this funnel does not have: a reader can take them out.
  const sources = [...new Set([...own, ...state.sources])];
  const asked = state.sources.length ? state.sources : sources;
  const pick = (field) => (event) => change({ [field]: event.target.value });
  // All of them are no choice, so that a link asks for sources that come later, too.
  const ask = (source) => (event) => {
    const wanted = sources.filter((s) => (s === source ? event.target.checked : asked.includes(s)));
    const isAll = wanted.length === own.length && own.every((s) => wanted.includes(s));
    change({ sources: isAll ? [] : wanted });
  };
  const weigh = (name) => (event) =>
    change({ weights: { ...state.weights, [name]: Number(event.target.value) } });
  return html`
    <section aria-labelledby="switches">
      <details open=${WIDE}>
        <summary><h2 id="switches">Switches</h2></summary>
        <div class="fields">
          <label>Funnel
            <select value=${name} onChange=${(e) => change({ ...OF_FUNNEL, funnel: e.target.value })}>
              ${Object.entries(funnels).map(([name, { sources }]) => html`
                <option key=${name} value=${name}>${name}: ${sources.join(", ")}</option>`)}
            </select>
          </label>
          <label>Length of the list: ${state.k}
            <input type="range" min="1" max=${MAX_K} value=${state.k} onChange=${(e) => change({ k: Number(e.target.value) })} />
          </label>
          <label>Diversity: ${state.diversity === "" ? `${funnel?.diversity ?? 0}, as exported` : state.diversity}
            <input type="range" min="0" max="1" step="0.05" value=${state.diversity === "" ? funnel?.diversity ?? 0 : state.diversity}
              onChange=${(e) => change({ diversity: Number(e.target.value) })} />
          </label>
          ${state.diversity !== "" && html`
            <button type="button" onClick=${() => change({ diversity: "" })}>Diversity as exported</button>`}
          ${(funnel?.searches.length > 0 || state.index) && html`
            <label>Index ${funnel?.searches.length > 0 ? `of ${funnel.searches.join(", ")}` : "that no source of this funnel searches"}
              <select value=${state.index} onChange=${pick("index")}>
                <option value="">as exported</option>
                ${indexes.map((index) => html`<option key=${index} value=${index}>${index}</option>`)}
              </select>
            </label>`}
          ${choices?.genres.length > 0 && html`
            <label>Genre
              <select value=${state.genre} onChange=${pick("genre")}>
                <option value="">any</option>
                ${choices.genres.map((genre) => html`<option key=${genre} value=${genre}>${genre}</option>`)}
              </select>
            </label>`}
          ${funnel?.reads.includes("search_text") && html`
            <label>Search text
              <input type="text" autocomplete="off" maxlength="200" value=${state.search} onChange=${pick("search")} />
            </label>`}
        </div>
        ${sources.length > 1 && html`
          <fieldset>
            <legend>Sources that are asked</legend>
            ${sources.map((source) => html`
              <label key=${source} class="check">
                <input type="checkbox" checked=${asked.includes(source)} disabled=${asked.length === 1 && asked.includes(source) && own.includes(source)} onChange=${ask(source)} />
                ${source}
              </label>`)}
          </fieldset>`}
        ${objectives.length > 1 && html`
          <fieldset>
            <legend>Weights of the objectives</legend>
            ${objectives.map((name) => html`
              <label key=${name}>${name}: ${state.weights[name] ?? "as exported"}
                <input type="range" min="0" max="2" step="0.1" value=${state.weights[name] ?? 1} onChange=${weigh(name)} />
              </label>`)}
          </fieldset>`}
      </details>
      ${state.exclude.length > 0 && html`
        <h3>Left out</h3>
        <ul class="chips picked">
          ${state.exclude.map((id) => {
            const name = nameOf(cards[id] ?? { item_id: id });
            const back = () => change({ exclude: state.exclude.filter((other) => other !== id) });
            return html`<li key=${id}>
              <button type="button" aria-label=${`Allow ${name} again`} onClick=${back}>
                <bdi>${name}</bdi> <span class="sign" aria-hidden="true">×</span>
              </button>
            </li>`;
          })}
        </ul>`}
    </section>
  `;
}
