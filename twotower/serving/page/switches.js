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
  const indexes = choices?.indexes ?? [];
  const sources = funnel?.sources ?? [];
  const asked = state.sources.length ? state.sources : sources;
  const pick = (field) => (event) => change({ [field]: event.target.value });
  // All of them are no choice, so that a link asks for sources that come later, too.
  const ask = (source) => (event) => {
    const wanted = sources.filter((s) => (s === source ? event.target.checked : asked.includes(s)));
    change({ sources: wanted.length === sources.length ? [] : wanted });
  };
  const exported = funnel?.objective_weights ?? {};
  const objectives = Object.keys(exported);
  const isWeighed = Object.keys(state.weights).length > 0;
  const weights = { ...exported, ...state.weights };
  // Room on both sides of what is exported, and for what a link has.
  const values = objectives.flatMap((name) => [2 * exported[name], weights[name]]);
  const [least, most] = [Math.floor(Math.min(0, ...values)), Math.ceil(Math.max(2, ...values))];
  const step = 10 ** Math.max(-1, Math.ceil(Math.log10((most - least) / 1000)));
  const weigh = (name) => (event) =>
    change({ weights: { ...weights, [name]: Number(event.target.value) } });
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
          ${(funnel?.reads.includes("search_text") || state.search) && html`
            <label>Search text${funnel?.reads.includes("search_text") ? "" : ", which this funnel does not read"}
              <input type="text" autocomplete="off" maxlength="200" value=${state.search} onChange=${pick("search")} />
            </label>`}
        </div>
        ${sources.length > 1 && html`
          <fieldset>
            <legend>Sources that are asked</legend>
            ${sources.map((source) => html`
              <label key=${source} class="check">
                <input type="checkbox" checked=${asked.includes(source)} disabled=${asked.length === 1 && asked.includes(source)} onChange=${ask(source)} />
                ${source}
              </label>`)}
          </fieldset>`}
        ${(objectives.length > 1 || isWeighed) && html`
          <fieldset>
            <legend>Weights of the objectives</legend>
            ${objectives.map((name) => html`
              <label key=${name}>${name}: ${weights[name]}${isWeighed ? "" : ", as exported"}
                <input type="range" min=${least} max=${most} step=${step} value=${weights[name]}
                  aria-valuetext=${weights[name]} onChange=${weigh(name)} />
              </label>`)}
            ${isWeighed && html`
              <button type="button" onClick=${() => change({ weights: {} })}>Weights as exported</button>`}
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
