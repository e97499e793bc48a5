// The plane of the map: marks on a canvas, and a pointer or arrow keys that go from title to title.

import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";

// Outlines around 0, some 1 wide to each side. One a genre, the most frequent first; the last is for
// all others.
const CROSS = "M-.4-1.1H.4V-.4H1.1V.4H.4V1.1H-.4V.4H-1.1V-.4H-.4Z";
const CIRCLE = "M1 0A1 1 0 1 1-1 0A1 1 0 1 1 1 0Z";
export const SHAPES = [
  CIRCLE,
  "M0-1.2L1.1 .8H-1.1Z",
  "M-.9-.9H.9V.9H-.9Z",
  "M0-1.3L1.3 0L0 1.3L-1.3 0Z",
  CROSS,
  "M0 1.2L1.1-.8H-1.1Z",
  "M-1.2-.5H1.2V.5H-1.2Z",
  "M.6 0A.6 .6 0 1 1-.6 0A.6 .6 0 1 1 .6 0Z",
];
const STAR =
  "M0-1.2L.35-.4L1.2-.37L.52 .16L.76 1L0 .5L-.76 1L-.52 .16L-1.2-.37L-.35-.4Z";
export const MARKS = { query: `${CIRCLE}M-1.6 0H1.6M0-1.6V1.6`, picked: STAR, recommended: CIRCLE };

const MARGIN = 14; // pixels
const REACH = 16; // pixels between the pointer and a title at most
export const CLOSEST = 8; // times
const MOVE = 700; // milliseconds that the query vector takes
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const STILL = matchMedia("(prefers-reduced-motion: reduce)");
const DARK = matchMedia("(prefers-color-scheme: dark)");

/** A mark as a picture beside text. */
export function Mark({ shape, name }) {
  return html`<svg class="mark ${name}" viewBox="-1.8 -1.8 3.6 3.6" aria-hidden="true"><path d=${shape} /></svg>`;
}

/** The map as a square: `zoom` times as large as it fits, of which the part around `middle` shows. */
export function Plane({ map, point, picked, recommended, kind, zoom, active, setActive, pick, described }) {
  const frame = useRef(null);
  const under = useRef(null); // canvas of all titles
  const over = useRef(null); // canvas of what changes with each answer
  const shown = useRef(null); // where the query vector is drawn, on its way to `point`
  const before = useRef(null); // where it came from
  const pointer = useRef([]); // x and y of the pointer in the window
  const [side, setSide] = useState(0); // pixels
  const [scheme, setScheme] = useState(DARK.matches);
  const [middle, setMiddle] = useState(point ?? [0.5, 0.5]);

  useEffect(() => {
    const sizes = new ResizeObserver(() => setSide(frame.current.clientWidth));
    const dark = () => setScheme(DARK.matches);
    sizes.observe(frame.current);
    DARK.addEventListener("change", dark);
    return () => {
      sizes.disconnect();
      DARK.removeEventListener("change", dark);
    };
  }, []);

  // No part beyond the map's edges is shown.
  const centre = middle.map((value) => Math.min(1 - 0.5 / zoom, Math.max(0.5 / zoom, value)));
  const pixels = (...xy) =>
    xy.map((value, axis) => MARGIN + (0.5 + zoom * (value - centre[axis])) * (side - 2 * MARGIN));
  const show = (xy) => pixels(...xy).some((value) => value < 0 || value > side) && setMiddle(xy);
  const pixelsOf = (id) => {
    const row = map.rows.get(id);
    return pixels(map.x[row], map.y[row]);
  };

  useEffect(() => {
    if (!side) return;
    const pen = penOf(under.current, side);
    const room = side * Math.sqrt(zoom / map.ids.length);
    const radius = Math.min(3 + zoom / 2, Math.max(1.5, 0.3 * room));
    const paths = SHAPES.map((shape) => new Path2D(shape));
    const colours = SHAPES.map((_, number) => colour(`--genre-${number}`));
    for (const front of [false, true]) {
      pen.globalAlpha = front || kind < 0 ? 0.85 : 0.2;
      map.ids.forEach((_, row) => {
        const number = map.kinds[row];
        if ((number === kind) !== front) return;
        const size = front ? 1.4 * radius : radius;
        pen.save();
        pen.translate(...pixels(map.x[row], map.y[row]));
        pen.scale(size, size);
        pen.fillStyle = colours[number];
        pen.fill(paths[number]);
        pen.restore();
      });
    }
  }, [map, side, scheme, kind, zoom, middle]);

  const draw = () => {
    if (!side) return;
    const pen = penOf(over.current, side);
    const [ink, paper, accent] = ["--ink", "--paper", "--accent"].map(colour);
    const outline = (path, at, radius, stroke, fill) => {
      pen.save();
      pen.translate(...at);
      pen.scale(radius, radius);
      if (fill) {
        pen.fillStyle = fill;
        pen.fill(path);
      }
      for (const [style, width] of [[paper, 5], [stroke, 2]]) {
        pen.strokeStyle = style;
        pen.lineWidth = width / radius;
        pen.stroke(path);
      }
      pen.restore();
    };
    const on = (ids) => ids.filter((id) => map.rows.has(id));
    on(recommended).forEach((id) => outline(RING, pixelsOf(id), 7, ink));
    on(picked).forEach((id) => outline(PICKED, pixelsOf(id), 8, ink, accent));
    if (map.rows.has(active)) outline(RING, pixelsOf(active), 10, accent);
    if (shown.current) {
      const at = pixels(...shown.current);
      if (before.current) {
        pen.strokeStyle = accent;
        pen.lineWidth = 2;
        pen.setLineDash([4, 4]);
        pen.beginPath();
        pen.moveTo(...pixels(...before.current));
        pen.lineTo(...at);
        pen.stroke();
        pen.setLineDash([]);
      }
      outline(QUERY, at, 10, accent);
    }
  };
  const latest = useRef(draw);
  latest.current = draw;
  useEffect(draw);

  useEffect(() => {
    const from = shown.current;
    before.current = point && from;
    if (point) show(point);
    if (!point || !from || STILL.matches) {
      shown.current = point;
      return latest.current();
    }
    const begun = performance.now();
    let next = requestAnimationFrame(function step(now) {
      const part = Math.min(1, Math.max(0, (now - begun) / MOVE));
      const eased = part * (2 - part);
      shown.current = from.map((value, axis) => value + eased * (point[axis] - value));
      latest.current();
      if (part < 1) next = requestAnimationFrame(step);
    });
    return () => cancelAnimationFrame(next);
  }, [point]);
  useEffect(() => setMiddle(point ?? [0.5, 0.5]), [zoom]);

  /** The title under a pointer; "" for none. */
  const pointedAt = (event) => {
    const box = frame.current.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const found = best(map, (row) => {
      const [left, top] = pixels(map.x[row], map.y[row]);
      return Math.hypot(left - x, top - y);
    });
    return found && found.cost <= REACH ? found.id : "";
  };
  // A longer list above moves the map under a pointer that rests. The active title then stays.
  const isMoved = ({ clientX, clientY, pointerType }) => {
    const [x, y] = pointer.current;
    pointer.current = [clientX, clientY];
    return pointerType !== "touch" && (x !== clientX || y !== clientY);
  };
  const move = (event) => isMoved(event) && setActive(pointedAt(event));
  const leave = (event) => isMoved(event) && setActive("");
  const click = (event) => {
    const id = pointedAt(event);
    // A finger hides the title below it: the first touch names it.
    if (id && (event.pointerType !== "touch" || id === active)) pick(id);
    else setActive(id);
  };
  const key = (event) => {
    const row = map.rows.get(active);
    const go = (id) => {
      setActive(id);
      show([map.x[map.rows.get(id)], map.y[map.rows.get(id)]]);
    };
    if (event.key === "Enter" && row >= 0) pick(active);
    else if (event.key === "Escape") setActive("");
    else if (event.key === "Home" || (event.key in ARROWS && !(row >= 0)))
      go(closest(map, point ?? [0.5, 0.5]));
    else if (event.key in ARROWS)
      go(closest(map, [map.x[row], map.y[row]], ARROWS[event.key]) || active);
    else return;
    event.preventDefault();
  };

  const [left, top] = map.rows.has(active) && side ? pixelsOf(active) : [0, 0];
  const text = map.rows.has(active) ? described(active) : "";
  return html`
    <div class="plane" ref=${frame} role="application" tabindex="0" aria-label="Map of titles"
      aria-describedby="map-keys" data-point=${(point ?? []).join(" ")}
      onPointerMove=${move} onPointerLeave=${leave} onClick=${click} onKeyDown=${key}>
      <canvas ref=${under} aria-hidden="true"></canvas>
      <canvas ref=${over} aria-hidden="true"></canvas>
      ${text && html`<p class="tip" aria-hidden="true" style=${{
        [left > side / 2 ? "right" : "left"]: `${(left > side / 2 ? side - left : left) + 8}px`,
        [top > side / 2 ? "bottom" : "top"]: `${(top > side / 2 ? side - top : top) + 8}px`,
      }}>${text}</p>`}
    </div>
  `;
}

const [RING, PICKED, QUERY] = ["recommended", "picked", "query"].map((name) => new Path2D(MARKS[name]));

/** A clean canvas of `side` x `side` pixels of the page, as sharp as the screen is. */
function penOf(canvas, side) {
  const scale = devicePixelRatio || 1;
  canvas.width = canvas.height = Math.round(side * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  return pen;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name);
}

/** {id, cost} of the title that costs least, among those whose cost is finite. */
function best(map, costOf) {
  let found = null;
  map.ids.forEach((id, row) => {
    const cost = costOf(row);
    if (cost < (found?.cost ?? Infinity)) found = { id, cost };
  });
  return found;
}

/** Id of the title closest to a point, within a quarter of all directions if one is given. */
function closest(map, [x, y], direction) {
  const found = best(map, (row) => {
    const [dx, dy] = [map.x[row] - x, map.y[row] - y];
    if (direction) {
      const along = dx * direction[0] + dy * direction[1];
      const across = Math.abs(dx * direction[1]) + Math.abs(dy * direction[0]);
      if (along <= 0 || across > along) return Infinity;
    }
    return Math.hypot(dx, dy);
  });
  return found?.id ?? "";
}
