// The page: its state, what it asks the service at each change, and where the parts stand.
// Titles reach the document as text alone: htm makes text nodes, and no part sets HTML.

import { html, render, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { CallError, get, post, setToken } from "./api.js";
import { Compare, search as searchIndexes } from "./compare.js";
import { Funnel } from "./funnel.js";
import { ItemMap } from "./map.js";
import { Picks } from "./picks.js";
import { Recommendations } from "./recommendations.js";
import { Switches } from "./switches.js";
import { bodyOf, read, requestOf, write } from "./state.js";
import { Towers } from "./towers.js";
import { Versions } from "./versions.js";

function Page() {
  const [state, setState] = useState(() => read(location.hash));
  const [choices, setChoices] = useState(null);
  const [cards, setCards] = useState({}); // id -> item, of all titles seen so far
  const [answer, setAnswer] = useState(null);
  const [query, setQuery] = useState(null); // {vector, point, model_version} of the answer's request
  const [lists, setLists] = useState(null); // of the indexes
  const [busy, setBusy] = useState(true);
  const [error, setError] = useState(null);
  const [round, setRound] = useState(0); // counts what changes an answer beside the state
  const latest = useRef(0);

  const learn = (items) =>
    setCards((known) => ({ ...known, ...Object.fromEntries(items.map((i) => [i.item_id, i])) }));

  const change = (changes) => {
    const next = { ...state, ...changes };
    history.pushState(null, "", write(next));
    setState(next);
  };

  useEffect(() => {
    const follow = () => setState(read(location.hash));
    addEventListener("popstate", follow);
    addEventListener("hashchange", follow);
    return () => {
      removeEventListener("popstate", follow);
      removeEventListener("hashchange", follow);
    };
  }, []);

  useEffect(() => {
    get("choices").then(setChoices, setError);
  }, [round]);

  // Another model version may have other funnels and genres.
  useEffect(() => {
    if (answer && choices && answer.model_version !== choices.model_version)
      get("choices").then(setChoices, setError);
  }, [answer?.model_version]);

  // The vector that the query tower made, and its point if the map is open.
  const onMap = state.map && !!choices?.has_map;
  useEffect(() => {
    if (!answer) return;
    const gone = new AbortController();
    const body = { requests: [requestOf(state)], on_map: onMap };
    post("embed", body, gone.signal).then(
      ({ vectors, points, model_version }) =>
        setQuery({ vector: vectors[0], point: points?.[0] ?? null, model_version }),
      (wrong) => wrong.name === "AbortError" || setError(wrong),
    );
    return () => gone.abort();
  }, [answer, onMap]);

  // Titles of a link's ids, and of old titles of a history that recommendations are near to.
  useEffect(() => {
    const near = (answer?.items ?? []).map((item) => item.because).filter(Boolean);
    const named = new Set([...state.likes, ...state.exclude, ...near]);
    const ids = [...named].filter((id) => !cards[id]).slice(0, 200);
    if (ids.length) get("titles", { item_id: ids }).then((found) => learn(found.items), setError);
  }, [state, round, answer]);

  useEffect(() => {
    const number = ++latest.current;
    const gone = new AbortController();
    const show = (set) => (value) => number === latest.current && set(value);
    setBusy(true);
    performance.mark("asked");
    post("recommend", bodyOf(state), gone.signal)
      .then((found) => {
        if (number !== latest.current) return;
        learn([...found.items, ...found.history]);
        setAnswer(found);
        setError(null);
        setBusy(false);
        if (!state.compare) return setLists(null);
        return searchIndexes(state, found, choices?.indexes ?? ["exact"], gone.signal)
          .then(show(setLists));
      })
      .catch((wrong) => {
        if (wrong.name === "AbortError" || number !== latest.current) return;
        setError(wrong);
        setBusy(false);
      });
    return () => gone.abort();
  }, [write(state), round, state.compare && choices]);

  // A button that was pressed may be gone with its row; the reader goes on at the heading.
  useEffect(() => {
    document.querySelector("#root").dataset.answers = latest.current;
    if (answer && document.activeElement === document.body && navigator.userActivation?.hasBeenActive)
      document.querySelector("#list")?.focus({ preventScroll: true });
  }, [answer]);

  const like = async (item) => {
    learn([item]);
    if (!state.user) return change({ likes: [...state.likes, item.item_id] });
    try {
      const event = { user_id: state.user, item_id: item.item_id, event: "like" };
      await post("events", { events: [event] });
      setRound(round + 1);
    } catch (wrong) {
      setError(wrong);
    }
  };
  const exclude = (item) => change({ exclude: [...state.exclude, item.item_id] });

  return html`
    <header>
      <h1>Two towers at work</h1>
      <p>
        ${choices
          ? `${choices.num_items.toLocaleString("en")} titles of ${choices.dataset}${
              choices.dataset.startsWith("synthetic") ? ", which are made up" : ""
            }; model ${choices.model_version}.`
          : "Waiting for the service."}
        ${" "}Like a title: the query tower makes a new vector, and the titles nearest to it come back.
      </p>
      <${Towers} ...${{ state, answer, query, choices }} />
    </header>
    ${error && html`<${Problem} error=${error} again=${() => setRound(round + 1)} />`}
    <div class="columns">
      <div class="side">
        <${Picks} ...${{ state, change, cards, like, answer, choices }} />
        <${Switches} ...${{ state, change, cards, choices }} />
      </div>
      <main>
        <${Recommendations} ...${{ state, answer, cards, busy, like, exclude }} />
        <${ItemMap} ...${{ state, change, choices, answer, query, cards, learn, like, fail: setError }} />
        <${Versions} ...${{ state, change, choices, answer }} />
        <${Compare} ...${{ state, change, lists, choices }} />
        <${Funnel} answer=${answer} />
      </main>
    </div>
  `;
}

function Problem({ error, again }) {
  const submit = (event) => {
    event.preventDefault();
    setToken(new FormData(event.target).get("token").trim());
    again();
  };
  return html`
    <section class="problem" role="alert" aria-label="Problem">
      <p>${error.message}</p>
      ${error instanceof CallError && error.status === 401
        ? html`<form onSubmit=${submit}>
            <label>Token of this service <input name="token" type="password" autocomplete="off" required /></label>
            <button>Use it</button>
          </form>`
        : html`<p class="small">The page was not updated.</p>
            <button type="button" onClick=${again}>Ask again</button>`}
    </section>
  `;
}

const root = document.querySelector("#root");
root.textContent = "";
render(html`<${Page} />`, root);
