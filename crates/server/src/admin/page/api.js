// Calls of the admin API. The token, if one is needed, is sent in a header, never in a URL.

const STORED = 'tgm-session-admin-token';
/** The timeout of a call, in milliseconds. */
const CALL_TIMEOUT = 15_000;

/** An error that the server answered, with its message. */
export class Problem extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The server could not be reached, or its answer was not one of a session server. */
export class Unreachable extends Error {}

let askForToken = async () => null;
let asking = null;
/** Set when the operator closed the dialog without a token, so that it is not shown again. */
let declined = false;

/** Sets how to ask for a token: `ask(refused)` returns one, or `null` if the operator gives none. */
export function onTokenNeeded(ask) {
  askForToken = ask;
}

/** Allows the dialog for the token to be shown again. */
export function askAgain() {
  declined = false;
}

/** Fetches with the token, and asks the operator for one if the server requires it. */
export async function request(path, options = {}) {
  for (;;) {
    const shown = sessionStorage.getItem(STORED);
    const headers = { ...options.headers };
    if (shown !== null) headers.authorization = `Bearer ${shown}`;
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: 'no-store', redirect: 'error' });
    } catch (error) {
      if (options.signal?.aborted) throw options.signal.reason;
      throw new Unreachable('the server does not answer', { cause: error });
    }
    if (response.status !== 401) return response;
    await token(shown);
  }
}

/** Asks the operator once, however many calls were refused with the same token. */
async function token(shown) {
  if (sessionStorage.getItem(STORED) !== shown) return;
  if (!declined) {
    asking ??= askForToken(shown !== null).finally(() => {
      asking = null;
    });
  }
  const given = await asking;
  declined = given === null;
  if (declined) throw new Problem(401, 'the server requires its admin token');
  sessionStorage.setItem(STORED, given);
}

/** Reads a resource. Empty `parameters` are left out. */
export async function get(path, parameters = {}, signal = undefined) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined && value !== '') query.set(name, value);
  }
  const limit = AbortSignal.timeout(CALL_TIMEOUT);
  const both = signal ? AbortSignal.any([signal, limit]) : limit;
  return answer(await request(query.size > 0 ? `${path}?${query}` : path, { signal: both }));
}

/** Changes a resource, and returns the result. */
export async function change(method, path, body = undefined) {
  const options = { method, signal: AbortSignal.timeout(CALL_TIMEOUT) };
  if (body !== undefined) {
    options.headers = { 'content-type': 'application/json' };
    options.body = JSON.stringify(body);
  }
  return answer(await request(path, options));
}

/** Deletes a session or an override. The note goes to the audit list. */
export function remove(path, note) {
  return change('DELETE', note === '' ? path : `${path}?${new URLSearchParams({ note })}`);
}

async function answer(response) {
  const text = await response.text();
  let parsed;
  try {
    parsed = JSON.parse(text);
  } catch {
    parsed = null;
  }
  if (!response.ok) {
    throw new Problem(
      response.status,
      parsed?.error ?? (text.trim() || `the server answered ${response.status}`),
    );
  }
  if (parsed === null) throw new Unreachable('the answer of the server is not JSON');
  return parsed;
}

/** The path of a resource; every part is encoded. */
export const path = (...parts) => `/api/${parts.map(encodeURIComponent).join('/')}`;
