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
  weights: {}, // objective -> weight
  compare: false, // the indexes side by side
  versions: false, // the loaded versions side by side
  map: false, // the map of the titles
};
export const MAX_K = 100;
/** What depends on the funnel, and starts anew with another one. */
export const OF_FUNNEL = { sources: [], diversity: "", weights: {} };
const TEXTS = ["user", "search", "funnel", "genre", "index"];
const OPEN = ["compare", "versions", "map"];

/** The state of an address; what does not fit is left out. */
export function read(hash) {
  const query = new URLSearchParams(hash.replace(/^#/, ""));
  const state = { ...START, weights: {} };
  for (const name of TEXTS) state[name] = query.get(name) ?? "";
  state.likes = [...new Set(query.getAll("like"))].filter(Boolean);
  state.exclude = [...new Set(query.getAll("exclude"))].filter(Boolean);
  state.sources = [...new Set(query.getAll("source"))].filter(Boolean);
  const diversity = query.get("diversity") ?? "";
  if (diversity.trim() && diversity >= 0 && diversity <= 1) state.diversity = Number(diversity);
  const k = Number(query.get("k"));
  if (Number.isInteger(k) && k >= 1 && k <= MAX_K) state.k = k;
  for (const name of OPEN) state[name] = query.get(name) === "1";
  for (const [name, value] of query) {
    const weight = Number(value);
    if (name.startsWith("weight.") && Number.isFinite(weight)) state.weights[name.slice(7)] = weight;
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
  for (const [name, value] of Object.entries(state.weights)) query.set(`weight.${name}`, value);
  const text = query.toString();
  return text ? `#${text}` : "#";
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

/** Who asks: what POST /embed takes, too. */
export function requestOf(state) {
  const request = state.user ? { user_id: state.user } : { history: state.likes };
  if (state.search) request.search_text = state.search;
  return request;
}
