// State of the page, kept in the address after "#": a link shows what its sender saw.

export const START = {
  user: "", // id of a user; the titles below are not sent then
  likes: [], // ids, oldest first
  exclude: [], // ids
  search: "", // text for the query tower
  funnel: "", // "" for the service's default
  k: 10,
  genre: "", // "" for any
  index: "", // that the sources search; "" for their own
  sources: [], // names of those that are asked; [] for all
  diversity: "", // weight from 0 to 1; "" for the funnel's own
  weights: {}, // objective -> weight; {} for the exported ones
  compare: false, // the indexes side by side
  versions: false, // the loaded versions side by side
  map: false, // the map of the titles
  odd: [], // words for values of the address that no state has
};
export const MAX_K = 100;
/** What depends on the funnel, and starts anew with another one. */
export const OF_FUNNEL = { sources: [], diversity: "", weights: {} };
const TEXTS = ["user", "search", "funnel", "genre", "index"];
const OPEN = ["compare", "versions", "map"];
const WEIGHT = "weight.";

/** The state of an address. Values that no state has stand in `odd`. */
export function read(hash) {
  const query = new URLSearchParams(hash.replace(/^#/, ""));
  const state = { ...START, weights: {}, odd: [] };
  for (const name of TEXTS) state[name] = query.get(name) ?? "";
  state.likes = [...new Set(query.getAll("like"))].filter(Boolean);
  state.exclude = [...new Set(query.getAll("exclude"))].filter(Boolean);
  state.sources = [...new Set(query.getAll("source"))].filter(Boolean);
  for (const name of OPEN) state[name] = query.get(name) === "1";
  for (const [name, value] of query) {
    const number = value.trim() ? Number(value) : NaN;
    if (name.startsWith(WEIGHT) && Number.isFinite(number)) state.weights[name.slice(WEIGHT.length)] = number;
    else if (name === "diversity" && number >= 0 && number <= 1) state.diversity = number;
    else if (name === "k" && Number.isInteger(number) && number >= 1 && number <= MAX_K) state.k = number;
    else if (name.startsWith(WEIGHT) || name === "diversity" || name === "k") state.odd.push(`${name} ${value}`);
  }
  return state;
}

/** The address of a state; what is as at the start is left out. */
export function write(state) {
  const query = new URLSearchParams();
  for (const name of TEXTS) {
    if (state[name]) query.set(name, state[name]);
  }
  for (const id of state.likes) query.append("like", id);
  for (const id of state.exclude) query.append("exclude", id);
  for (const name of state.sources) query.append("source", name);
  if (state.diversity !== "") query.set("diversity", state.diversity);
  if (state.k !== START.k) query.set("k", state.k);
  for (const name of OPEN) if (state[name]) query.set(name, "1");
  for (const [name, value] of Object.entries(state.weights)) query.set(WEIGHT + name, value);
  const text = query.toString();
  return text ? `#${text}` : "#";
}

/** Whether a state has choices that a bundle may not have. */
export function isChoosing({ funnel, index, genre, sources, weights }) {
  return !!(funnel || index || genre || sources.length || Object.keys(weights).length);
}

/**
 * A state without the choices that a bundle does not have, and words for these.
 *
 * The service gives the weight 0 to an objective that a request with weights does not name. So with
 * one weight the others get their exported ones, which the page shows.
 */
export function fitted(state, choices) {
  const dropped = [...state.odd];
  const among = (word, known) => (name) => {
    if (!known.includes(name)) dropped.push(`${word} ${name}`);
    return known.includes(name);
  };
  const text = (field, known) => [state[field]].filter(Boolean).find(among(field, known)) ?? "";
  const funnel = text("funnel", Object.keys(choices.funnels));
  const { sources, objective_weights } = choices.funnels[funnel || choices.default_funnel];
  const weights = Object.entries(state.weights).filter(([name]) =>
    among("objective", Object.keys(objective_weights))(name),
  );
  const fits = {
    ...state,
    funnel,
    index: text("index", choices.indexes),
    genre: text("genre", choices.genres),
    sources: state.sources.filter(among("source", sources)),
    weights: weights.length ? { ...objective_weights, ...Object.fromEntries(weights) } : {},
    odd: [],
  };
  return [fits, dropped];
}

/** The body of POST /recommend for a state. */
export function bodyOf(state) {
  const body = { ...requestOf(state), k: state.k, exclude: state.exclude, explain: true };
  if (state.funnel) body.funnel = state.funnel;
  if (state.index) body.index = state.index;
  if (state.sources.length) body.sources = state.sources;
  if (state.diversity !== "") body.diversity = state.diversity;
  if (state.genre) body.filters = { genres: [state.genre] };
  if (Object.keys(state.weights).length) body.objective_weights = state.weights;
  return body;
}

/** Query parameters of a GET that the version of this user is to answer. */
export function asUser({ user }) {
  return user ? { user_id: user } : {};
}

/** Who asks: what POST /embed takes, too. */
export function requestOf(state) {
  const request = state.user ? { user_id: state.user } : { history: state.likes };
  if (state.search) request.search_text = state.search;
  return request;
}
