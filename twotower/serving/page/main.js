// The page: its state, what it asks the service at each change, and where the parts stand.
// Titles reach the document as text alone: htm makes text nodes, and no part sets HTML.

import { html, render, useEffect, useMemo, useRef, useState } from "./vendor/preact-htm.js";
import { CallError, get, post, setToken } from "./api.js";
import { Compare } from "./compare.js";
import { Funnel } from "./funnel.js";
import { ItemMap } from "./map.js";
import { Picks } from "./picks.js";
import { Recommendations } from "./recommendations.js";
import { Switches } from "./switches.js";
import { asUser, bodyOf, fitted, isChoosing, read, requestOf, write } from "./state.js";
import { Towers } from "./towers.js";
import { Versions } from "./versions.js";

function Page() {
  const [linked, setLinked] = useState(() => read(location.hash)); // as the address has it
  const [choices, setChoices] = useState(null); // of the version that answers the user `of`
  const [cards, setCards] = useState({}); // id -> item, of all titles seen so far
  const [answer, setAnswer] = useState(null); // and the state that it was `asked` for
  const [query, setQuery] = useState(null); // {answer, vector, point, model_version, version, wrong}
  const [busy, setBusy] = useState(true);
  const [error, setError] = useState(null); // of what was asked last
  const [noChoices, setNoChoices] = useState(null); // the error of GET /choices
  const [round, setRound] = useState(0); // counts what changes an answer beside the state
  const latest = useRef(0);

  // What is asked, which is what the page shows: only what the version has that answers.
  const isKnown = !!choices && choices.of === linked.user;
  const [state, dropped] = useMemo(
    () => (isKnown ? fitted(linked, choices) : [linked, []]),
    [linked, isKnown && choices],
  );

  const learn = (items) =>
    setCards((known) => ({ ...known, ...Object.fromEntries(items.map((i) => [i.item_id, i])) }));

  const change = (changes) => {
    const next = { ...state, ...changes };
    history.pushState(null, "", write(next));
    setLinked(next);
  };
  const fail = (wrong) => wrong.name === "AbortError" || setError(wrong);

  useEffect(() => {
    const follow = () => setLinked(read(location.hash));
    addEventListener("popstate", follow);
    addEventListener("hashchange", follow);
    return () => {
      removeEventListener("popstate", follow);
      removeEventListener("hashchange", follow);
    };
  }, []);

  // Another user's version, and one that was deployed meanwhile, may have other funnels and indexes.
  useEffect(() => {
    const isSame = !answer || answer.version === choices?.version;
    if (isKnown && isSame && choices.round === round) return;
    const gone = new AbortController();
    const of = linked.user;
    get("choices", asUser(linked), gone.signal).then(
      (found) => {
        setChoices({ ...found, of, round });
        setNoChoices(null);
      },
      (wrong) => {
        if (wrong.name === "AbortError") return;
        setNoChoices(wrong);
        if (!isReady) setBusy(false);
      },
    );
    return () => gone.abort();
  }, [round, linked.user, answer?.version]);

  // The vector that the query tower made, and its point if the map is open.
  const onMap = state.map && isKnown && choices.has_map;
  useEffect(() => {
    if (!answer || answer.asked.user !== state.user) return;
    const gone = new AbortController();
    const ask = (on_map) =>
      post("embed", { requests: [requestOf(answer.asked)], on_map }, gone.signal);
    const withoutMap = async (wrong) => {
      gone.signal.throwIfAborted();
      return { ...(await ask(false)), wrong: wrong.message };
    };
    (onMap ? ask(true).catch(withoutMap) : ask(false)).then(
      ({ vectors, points, model_version, wrong }) => {
        const point = points?.[0] ?? null;
        // After a deploy between the answer and its vector, the vector is of another training.
        const version = model_version === answer.model_version ? answer.version : "";
        setQuery({ answer, vector: vectors[0], point, model_version, version, wrong });
      },
      (wrong) => {
        if (!gone.signal.aborted) setQuery(null);
        fail(wrong);
      },
    );
    return () => gone.abort();
  }, [answer, onMap]);

  // Titles of a link's ids, and of old titles of a history that recommendations are near to.
  useEffect(() => {
    const near = (answer?.items ?? []).map((item) => item.because).filter(Boolean);
    const named = new Set([...state.likes, ...state.exclude, ...near]);
    const ids = [...named].filter((id) => !cards[id]).slice(0, 200);
    if (ids.length) get("titles", { item_id: ids, ...asUser(linked) }).then((found) => learn(found.items), fail);
  }, [linked, round, answer]);

  // A request with choices waits until it is known what there is to choose.
  const isReady = isKnown || !isChoosing(state);
  const body = JSON.stringify(bodyOf(state));
  useEffect(() => {
    const number = ++latest.current;
    setBusy(true);
    if (!isReady) return;
    const gone = new AbortController();
    performance.mark("asked");
    post("recommend", bodyOf(state), gone.signal).then(
      (found) => {
        if (number !== latest.current) return;
        learn([...found.items, ...found.history]);
        setAnswer({ ...found, asked: state });
        setError(null);
        setBusy(false);
      },
      (wrong) => {
        if (number !== latest.current || wrong.name === "AbortError") return;
        setError(wrong);
        setBusy(false);
      },
    );
    return () => gone.abort();
  }, [body, round, isReady]);

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
  const problem = error ?? noChoices;

  return html`
    <header>
      <h1>Two towers at work</h1>
      <p>
        ${choices
          ? `${choices.num_items.toLocaleString("en")} titles of ${choices.dataset}${
              choices.dataset.startsWith("synthetic") ? ", which are made up" : ""
            }; model ${(answer ?? choices).model_version}${
              choices.versions.length > 1 ? `, version ${(answer ?? choices).version}` : ""
            }.`
          : "Waiting for the service."}
        ${" "}Like a title: the query tower makes a new vector, and the titles nearest to it come back.
      </p>
      <${Towers} ...${{ answer, query, choices }} />
    </header>
    <div role="status">
      ${dropped.length > 0 && html`<p class="notice">
        Left out of the request, since version ${choices.version} does not offer it: <bdi>${dropped.join(", ")}</bdi>.
      </p>`}
    </div>
    ${problem && html`<${Problem} error=${problem} again=${() => setRound(round + 1)} />`}
    <div class="columns">
      <div class="side">
        <${Picks} ...${{ state, change, cards, like, answer, choices }} />
        <${Switches} ...${{ state, change, cards, choices }} />
      </div>
      <main>
        <${Recommendations} ...${{ answer, cards, busy, like, exclude }} />
        <${ItemMap} ...${{ state, change, choices, answer, query, cards, learn, like, fail }} />
        <${Versions} ...${{ state, change, choices, answer }} />
        <${Compare} ...${{ state, change, choices, query }} />
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
