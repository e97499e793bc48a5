// Lists side by side.

import { html } from "./vendor/preact-htm.js";
import { nameOf } from "./picks.js";

/** Lists of {name, note, items, mark}; an item with a mark, mark(item), differs from the others. */
export function Lists({ lists }) {
  return html`<div class="lists">
    ${lists.map(({ name, note, items, mark }) => html`<div key=${name}>
      <h3>${name}</h3>
      <p class="small">${note}</p>
      <ol>
        ${items.map((item) => html`<li key=${item.item_id} class=${mark(item) ? "differs" : ""}>
          <bdi>${nameOf(item)}</bdi>${mark(item) && html` <span class="small">(${mark(item)})</span>`}
        </li>`)}
      </ol>
    </div>`)}
  </div>`;
}
