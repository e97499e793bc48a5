// The query vector of the answer, searched in each index of the version that answered.

import { html, useEffect, useState } from "./vendor/preact-htm.js";
import { post } from "./api.js";
import { Lists } from "./lists.js";

export function Compare({ state, change, choices, query }) {
  const [lists, setLists] = useState(null); // {index, items} or {index, items: [], error}
  const indexes = choices?.indexes ?? ["exact"];

  useEffect(() => {
    if (!state.compare || !choices || !query) return setLists(null);
    const gone = new AbortController();
    const { history, asked } = query.answer;
    const exclude = [...history.map((item) => item.item_id), ...asked.exclude];
    const { model_version, version } = query;
    const body = { vectors: [query.vector], model_version, version, k: asked.k, exclude };
    const ask = (index) =>
      post("search", { ...body, index }, gone.signal).then(
        (found) => ({ index, items: found.items[0] }),
        (wrong) => ({ index, items: [], error: wrong.message }),
      );
    Promise.all(indexes.map(ask)).then((found) => gone.signal.aborted || setLists(found));
    return () => gone.abort();
  }, [state.compare, query, choices && indexes.join()]);

  const found = lists?.find(({ index, error }) => index === "exact" && !error);
  const exact = found && new Set(found.items.map((item) => item.item_id));
  return html`
    <section aria-labelledby="compare">
      <h2 id="compare">Indexes</h2>
      <label class="check">
        <input type="checkbox" checked=${state.compare} onChange=${(e) => change({ compare: e.target.checked })} />
        Search ${indexes.join(", ")}${choices?.versions.length > 1 && `, all that version ${choices.version} has,`}
        ${" "}with the same query vector
      </label>
      ${lists && state.user && html`<p class="small">
        The newest 100 titles of the history are left out here; older ones may come back.
      </p>`}
      ${lists && html`<${Lists} lists=${lists.map((list) => listOf(list, exact))} />`}
    </section>
  `;
}

function listOf({ index, items, error }, exact) {
  const same = items.filter((item) => exact?.has(item.item_id)).length;
  const share = exact ? `${same} of ${exact.size} of the true nearest.` : "";
  const note = error ?? (index === "exact" ? "The true nearest." : share);
  const mark = (item) => (!exact || exact.has(item.item_id) ? "" : "not among the exact");
  return { name: index, note, items, mark };
}
