// How many candidates each stage of the funnel left, and the time that it took.

import { html } from "./vendor/preact-htm.js";

export function Funnel({ answer }) {
  if (!answer) return null;
  const lost = answer.stages.map(({ lost }) => Object.entries(lost).filter(([, count]) => count));
  const loses = lost.some((counts) => counts.length);
  // Filters count for all requests of the batch.
  const { requests } = answer.batch;
  const relaxed = Object.entries(answer.relaxed).map(([name, count]) =>
    requests > 1 ? `${name} (for ${count} of the ${requests} requests)` : name,
  );
  const most = Math.max(1, ...answer.stages.map((stage) => stage.candidates));
  return html`
    <section aria-labelledby="funnel">
      <h2 id="funnel">Funnel</h2>
      <p class="small">
        Sources find candidates, the merge makes one list of them, and later stages sort it or take titles out.
      </p>
      <div class="scroll" tabindex="0" role="group" aria-label="Stages of the funnel">
        <table>
          <thead>
            <tr><th scope="col">Stage</th><th scope="col" class="number">Candidates</th><td></td><th scope="col" class="number">ms</th>${loses && html`<th scope="col">Lost${requests > 1 && ", of the batch"}</th>`}</tr>
          </thead>
          <tbody>
            ${answer.stages.map((stage, row) => html`
              <tr key=${row}>
                <th scope="row">${stage.name}</th>
                <td class="number">${stage.candidates}</td>
                <td class="bars" aria-hidden="true"><span style=${{ width: `${(100 * stage.candidates) / most}%` }}></span></td>
                <td class="number">${stage.ms.toFixed(2)}</td>
                ${loses && html`<td>${lost[row].map(([name, count]) => `${name} ${count}`).join(", ")}</td>`}
              </tr>`)}
          </tbody>
        </table>
      </div>
      <p class="small">
        ${answer.batch.ms.toFixed(1)} ms in all, with ${requests === 1
          ? "no other request" : `${requests - 1} other requests`} in the batch.
        ${relaxed.length > 0 && ` Relaxed, since nothing would be left: ${relaxed.join(", ")}.`}
      </p>
    </section>
  `;
}
