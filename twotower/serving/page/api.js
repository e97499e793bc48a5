// Calls of the service that this page comes from.

let token = "";

/** Takes the token that further calls carry. It is kept until the page is left. */
export function setToken(text) {
  token = text;
}

/** A call that failed; `status` is 401 if a token is missing, and 0 if nothing answered. */
export class CallError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.authorization = `Bearer ${token}`;
  const answer = await fetch(path, { ...options, headers }).catch(() => {
    options.signal?.throwIfAborted();
    throw new CallError(0, "The service does not answer. Is it running?");
  });
  const body = await answer.json().catch(() => {
    // Called off, or broken off: half a body is no answer. An error's body may be a proxy's.
    options.signal?.throwIfAborted();
    if (answer.ok) throw new CallError(0, "The service's answer broke off, or is none of its own.");
    return {};
  });
  if (!answer.ok) {
    const { field, message } = body.error ?? {};
    const text = message ?? `the service answered ${answer.status}`;
    throw new CallError(answer.status, field ? `${field}: ${text}` : text);
  }
  return body;
}

/** The answer of a GET. A value that is a list is sent several times. */
export function get(path, query = {}, signal) {
  const pairs = Object.entries(query).flatMap(([name, value]) =>
    [value].flat().map((part) => [name, part]),
  );
  const text = new URLSearchParams(pairs).toString();
  return call(text ? `${path}?${text}` : path, { signal });
}

/** The answer of a POST. */
export function post(path, body, signal) {
  const headers = { "content-type": "application/json" };
  return call(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}
