// The same request, answered by each version that is loaded: the live one and its canary.

import { html, useEffect, useState } from "./vendor/preact-htm.js";
import { post } from "./api.js";
import { Lists } from "./lists.js";
import { bodyOf } from "./state.js";

export function Versions({ state, change, choices, answer }) {
  const [answers, setAnswers] = useState(null); // {version, items, model_version} or {version, error}
  const versions = choices?.versions ?? [];
  const isOpen = state.versions && versions.length > 1;

  useEffect(() => {
    if (!isOpen || !answer) return setAnswers(null);
    const gone = new AbortController();
    const ask = (version) =>
      post("recommend", { ...bodyOf(answer.asked), explain: false, version }, gone.signal).then(
        (found) => ({ ...found, version }),
        (wrong) => ({ version, items: [], error: wrong.message }),
      );
    Promise.all(versions.map(ask)).then((found) => gone.signal.aborted || setAnswers(found));
    return () => gone.abort();
  }, [isOpen, answer, versions.join()]);

  if (versions.length < 2) return null;
  return html`
    <section aria-labelledby="versions">
      <h2 id="versions">Versions</h2>
      <label class="check">
        <input type="checkbox" checked=${state.versions} onChange=${(e) => change({ versions: e.target.checked })} />
        Ask each of the ${versions.length} versions that are loaded
      </label>
      ${isOpen && answers && html`<${Lists} lists=${answers.map((one) => listOf(one, answers))} />`}
    </section>
  `;
}

function listOf({ version, items, error, model_version }, answers) {
  const others = answers.filter((other) => other.version !== version && !other.error);
  const shared = new Set(others.flatMap((other) => other.items.map((item) => item.item_id)));
  const count = items.filter((item) => shared.has(item.item_id)).length;
  const role = answers[0].version === version ? "Live" : "Canary";
  const share = others.length ? ` It shares ${count} of ${items.length} with the other.` : "";
  const note = error ? `${role}: ${error}` : `${role}, model ${model_version}.${share}`;
  const mark = (item) => (!others.length || shared.has(item.item_id) ? "" : "only here");
  return { name: version, note, items, mark };
}
