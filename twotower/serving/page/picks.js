// What the query is made of: titles that are liked, or a user of the service.

import { html, useEffect, useState } from "./vendor/preact-htm.js";
import { get } from "./api.js";
import { asUser } from "./state.js";

const FOUND = 8;
const SHOWN = 12; // titles of a history

export function Picks({ state, change, cards, like, answer, choices }) {
  const [text, setText] = useState("");
  const [found, setFound] = useState([]);
  const [suggested, setSuggested] = useState([]);
  const [user, setUser] = useState(state.user);
  useEffect(() => setUser(state.user), [state.user]);

  // Suggestions for a start: titles that tell most of a taste or popular ones, else the first ones.
  useEffect(() => {
    if (!choices) return;
    const of = asUser({ user: choices.of });
    const first = () => get("titles", { k: FOUND, ...of });
    // A version that was deployed meanwhile may have no such list.
    (choices.has_onboarding ? get("onboarding", { size: FOUND, ...of }).catch(first) : first())
      .then((answer) => setSuggested(answer.items), () => {});
  }, [choices?.version]);

  useEffect(() => {
    if (!text.trim()) return setFound([]);
    const gone = new AbortController();
    get("titles", { search: text, k: FOUND, ...asUser(state) }, gone.signal).then(
      (answer) => setFound(answer.items),
      () => {},
    );
    return () => gone.abort();
  }, [text]);

  const isOfUser = answer?.asked.user === state.user; // not that of another user
  const history = state.user
    ? [...(isOfUser ? answer.history : [])].reverse()
    : state.likes.map((id) => cards[id] ?? { item_id: id, title: id }).reverse();
  const known = new Set(history.map((item) => item.item_id));
  const offered = (text.trim() ? found : suggested).filter((item) => !known.has(item.item_id));
  const submit = (event) => {
    event.preventDefault();
    change({ user: user.trim(), likes: [] });
  };
  const remove = (id) => change({ likes: state.likes.filter((liked) => liked !== id) });

  return html`
    <section aria-labelledby="picks">
      <h2 id="picks" tabindex="-1">${state.user ? `User ${state.user}` : "Titles you like"}</h2>
      <label for="search">Find a title</label>
      <input id="search" type="search" autocomplete="off" value=${text} onInput=${(e) => setText(e.target.value)} />
      <p role="status" class="small">
        ${text.trim() ? `${offered.length} found. ` : "Suggestions. "}
        ${state.user ? `A click sends a like of user ${state.user} to the service, which keeps it.` : "A click adds a title."}
      </p>
      <ul class="chips offered" aria-label=${text.trim() ? "Titles found" : "Suggestions"}>
        ${offered.map((item) => html`
          <li key=${item.item_id}>
            <button type="button" onClick=${() => like(item)}>
              <span class="sign" aria-hidden="true">+</span> <bdi>${nameOf(item)}</bdi>
            </button>
          </li>`)}
      </ul>
      <h3>${state.user ? "History the service knows, newest first" : "Your titles, newest first"}</h3>
      ${history.length
        ? html`<ul class="chips picked">
            ${history.slice(0, SHOWN).map((item) => html`
              <li key=${item.item_id}>
                ${state.user
                  ? html`<span class="chip" dir="auto">${nameOf(item)}</span>`
                  : html`<button type="button" aria-label=${`Remove ${nameOf(item)}`} onClick=${() => remove(item.item_id)}>
                      <bdi>${nameOf(item)}</bdi> <span class="sign" aria-hidden="true">×</span>
                    </button>`}
              </li>`)}
          </ul>`
        : html`<p class="small">${state.user ? (isOfUser ? "None." : "Waiting for the service.") : "None yet: the list is what everybody gets."}</p>`}
      ${history.length > SHOWN && html`<p class="small">And older ones.</p>`}
      <form onSubmit=${submit} class="row">
        <label>Or a user's id
          <input name="user" autocomplete="off" maxlength="256" value=${user} onInput=${(e) => setUser(e.target.value)} />
        </label>
        <button>Show</button>
        <button type="button" onClick=${() => change({ user: "", likes: [], exclude: [], search: "" })}>Start anew</button>
      </form>
      ${state.user && choices && !choices.knows_histories && html`<p class="small">
        The service was started without histories of users: it knows the events of this session alone.
      </p>`}
    </section>
  `;
}

/** Title and year of an item. */
export function nameOf(item) {
  const title = item.title || item.item_id;
  // MovieLens has the year in the title, too.
  return item.year && !title.includes(String(item.year)) ? `${title} (${item.year})` : title;
}
