// A map of the titles, where similar ones are neighbours, and the query vector among them.

import { html, useEffect, useMemo, useState } from "./vendor/preact-htm.js";
import { get } from "./api.js";
import { nameOf } from "./picks.js";
import { asUser } from "./state.js";
import { CLOSEST, MARKS, Mark, Plane, SHAPES } from "./plane.js";

const AROUND = 40; // titles that are asked for with one that is pointed at
const NEAR = 3; // titles that say where the query vector is
const SHOWN = 20; // picked titles, the newest

export function ItemMap({ state, change, choices, answer, query, cards, learn, like, fail }) {
  const [loaded, setLoaded] = useState(null); // the map `of` a version
  const [wrong, setWrong] = useState(""); // why it could not be loaded
  const [active, setActive] = useState(""); // id of the title that is pointed at
  const [kind, setKind] = useState(-1); // of the genre that is shown alone
  const [zoom, setZoom] = useState(1);
  const isOpen = state.map && !!choices?.has_map;
  const point = query?.point ?? null; // [x, y] of the query vector
  const map = !query || loaded?.of === query.version ? loaded : null;

  useEffect(() => {
    setWrong(query?.wrong ?? "");
    if (!isOpen || !query || map) return;
    const gone = new AbortController();
    const { model_version, version } = query;
    get("map", { model_version, version }, gone.signal).then(
      (found) => setLoaded({ ...prepared(found), of: version }),
      (wrong) => wrong.name === "AbortError" || setWrong(wrong.message),
    );
    return () => gone.abort();
  }, [isOpen, query]);

  const near = useMemo(() => (map && point ? nearest(map, point, NEAR) : []), [map, point]);
  useEffect(() => {
    if (!isOpen || !map) return;
    // With what stands around it, so that the pointer's next titles are known already.
    const wanted = active && !cards[active] ? nearest(map, pointOf(map, active), AROUND) : near;
    const ids = wanted.filter((id) => !cards[id]);
    if (!ids.length) return;
    const ask = () => get("titles", { item_id: ids, ...asUser(state) }).then((found) => learn(found.items), fail);
    const timer = setTimeout(ask, active ? 60 : 0);
    return () => clearTimeout(timer);
  }, [isOpen, map, active, near]);

  const name = (id) => (cards[id] ? nameOf(cards[id]) : "");
  const history = state.user ? (answer?.history ?? []).map((item) => item.item_id) : state.likes;
  const picked = history.slice(-SHOWN).reverse();
  const recommended = (answer?.items ?? []).map((item) => item.item_id);
  const pick = async (id) => {
    if (history.includes(id)) return;
    try {
      const item = cards[id] ?? (await get("titles", { item_id: [id], ...asUser(state) })).items[0];
      if (item) await like(item);
    } catch (wrong) {
      fail(wrong);
    }
  };
  const described = (id) => [name(id) || id, genreOf(map, id)].filter(Boolean).join(", ");

  return html`
    <section aria-labelledby="map">
      <h2 id="map">Map</h2>
      ${choices && !choices.has_map
        ? html`<p class="small">Version ${choices.version} has no map; <code>twotower build_map</code> makes one.</p>`
        : html`<label class="check">
            <input type="checkbox" checked=${state.map} onChange=${(e) => change({ map: e.target.checked })} />
            Show the titles on a map, where similar ones are neighbours
          </label>`}
      ${isOpen && wrong && html`<p role="alert" class="small">The map could not be asked: ${wrong}</p>`}
      ${isOpen && map && html`
        <p role="status" class="small">${whereabouts(point, near, name)}</p>
        <div class="map">
          <div class="drawn">
            <${Plane} ...${{ map, point, picked, recommended, kind, zoom, active, setActive, pick, described }} />
            <p class="row active">
              <button type="button" disabled=${zoom >= CLOSEST} onClick=${() => setZoom(2 * zoom)}>Closer</button>
              <button type="button" disabled=${zoom <= 1} onClick=${() => setZoom(zoom / 2)}>Farther</button>
              <span aria-live="polite">${active ? described(active) : "No title is pointed at."}</span>
              ${active && !history.includes(active) && html`
                <button type="button" onClick=${() => pick(active)}>Like ${name(active) || active}</button>`}
            </p>
          </div>
          <${Legend} ...${{ map, kind, setKind }} />
        </div>
        <p class="small" id="map-keys">
          Point at a title to read its name; a click likes it. On a keyboard the arrow keys go from title
          to title, Home goes to the query vector, and Enter likes. Of ${map.ids.length.toLocaleString("en")}
          ${" "}titles; trustworthiness ${map.trustworthiness.toFixed(2)}, of 1 at most: how far neighbours
          here are neighbours among the vectors.
        </p>
        <details open>
          <summary>The map in words: how far from the query vector, in percent of the width</summary>
          <div class="lists small">
            <${Words} title="Picked, newest first" ids=${picked} ...${{ map, point, described }} />
            <${Words} title="Recommended" ids=${recommended} ...${{ map, point, described }} />
          </div>
        </details>`}
    </section>
  `;
}

/** A map as the service answers it, with the row and the kind of mark of each title. */
function prepared(map) {
  const rows = new Map(map.ids.map((id, row) => [id, row]));
  const other = SHAPES.length - 1;
  const kinds = map.genre.map((genre) => (genre < 0 ? other : Math.min(genre, other)));
  return { ...map, rows, kinds };
}

function Legend({ map, kind, setKind }) {
  const other = SHAPES.length - 1;
  const names = [...map.genres.slice(0, other), "Other"];
  const used = new Set(map.kinds);
  return html`
    <div class="legend">
      <ul>
        ${[["query", "Query vector"], ["picked", "Picked"], ["recommended", "Recommended"]].map(([mark, text]) => html`
          <li key=${mark}><${Mark} shape=${MARKS[mark]} name=${mark} /> ${text}</li>`)}
      </ul>
      ${map.genres.length > 0 && html`
        <p class="small" id="genres">First genre; press one to see it alone.</p>
        <ul class="chips" aria-labelledby="genres">
          ${names.map((text, number) => used.has(number) && html`
            <li key=${text}>
              <button type="button" aria-pressed=${kind === number} onClick=${() => setKind(kind === number ? -1 : number)}>
                <${Mark} shape=${SHAPES[number]} name=${`genre-${number}`} /> ${text}
              </button>
            </li>`)}
        </ul>`}
    </div>
  `;
}

/** Titles as text, with their distance from the query vector. */
function Words({ title, ids, map, point, described }) {
  const shown = ids.filter((id) => map.rows.has(id));
  const away = (id) => {
    if (!point) return "";
    const [x, y] = pointOf(map, id);
    return `, ${Math.round(100 * Math.hypot(x - point[0], y - point[1]))}%`;
  };
  return html`<div>
    <h3>${title}</h3>
    ${shown.length === 0 && html`<p>None.</p>`}
    <ol>${shown.map((id) => html`<li key=${id}>${described(id)}${away(id)}</li>`)}</ol>
    ${shown.length < ids.length && html`<p>${ids.length - shown.length} are not on the map.</p>`}
  </div>`;
}

function whereabouts(point, near, name) {
  if (!point) return "The query vector is near no title of the map.";
  const names = near.map(name).filter(Boolean);
  return names.length ? `The query vector is among ${names.join("; ")}.` : "The query vector is on the map.";
}

function genreOf(map, id) {
  return map?.genres[map.genre[map.rows.get(id)]];
}

function pointOf(map, id) {
  const row = map.rows.get(id);
  return [map.x[row], map.y[row]];
}

/** Ids of the titles that are nearest to a point, the nearest first. */
function nearest(map, [x, y], count) {
  const distance = map.ids.map((_, row) => Math.hypot(map.x[row] - x, map.y[row] - y));
  const rows = [...map.ids.keys()].sort((a, b) => distance[a] - distance[b]);
  return rows.slice(0, count).map((row) => map.ids[row]);
}
