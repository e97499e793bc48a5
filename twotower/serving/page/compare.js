// The same query vector, searched in each index of the bundle.

import { html } from "./vendor/preact-htm.js";
import { post } from "./api.js";
import { Lists } from "./lists.js";
import { requestOf } from "./state.js";

/** [{index, items}] for the query vector of a state; without the history and what is left out. */
export async function search(state, answer, indexes, signal) {
  const embedded = await post("embed", { requests: [requestOf(state)] }, signal);
  const exclude = [...answer.history.map((item) => item.item_id), ...state.exclude];
  const { vectors, model_version } = embedded;
  return Promise.all(
    indexes.map(async (index) => {
      const body = { vectors, model_version, k: state.k, index, exclude };
      return { index, items: (await post("search", body, signal)).items[0] };
    }),
  );
}

export function Compare({ state, change, lists, choices }) {
  const exact = new Set(lists?.[0]?.items.map((item) => item.item_id));
  return html`
    <section aria-labelledby="compare">
      <h2 id="compare">Indexes</h2>
      <label class="check">
        <input type="checkbox" checked=${state.compare} onChange=${(e) => change({ compare: e.target.checked })} />
        Search ${(choices?.indexes ?? ["exact"]).join(", ")} with the same query vector
      </label>
      ${lists && state.user && html`<p class="small">
        The newest 100 titles of the history are left out here; older ones may come back.
      </p>`}
      ${lists && html`<${Lists} lists=${lists.map(({ index, items }) => listOf(index, items, exact))} />`}
    </section>
  `;
}

function listOf(index, items, exact) {
  const same = items.filter((item) => exact.has(item.item_id)).length;
  const note = index === "exact" ? "The true nearest." : `${same} of ${exact.size} of the true nearest.`;
  const mark = (item) => (exact.has(item.item_id) ? "" : "not among the exact");
  return { name: index, note, items, mark };
}
