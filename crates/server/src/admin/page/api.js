// Calls of the admin API. The token, where one is needed, travels in a header and never in a URL.

const STORED = 'tgm-session-admin-token';
/** A call that takes longer than this has failed. */
const PATIENCE = 15_000;

/** What the server refused, in its own words. */
export class Problem extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The server could not be reached, or did not speak like one. */
export class Unreachable extends Error {}

let askForToken = async () => null;
let asking = null;
/** Set once the operator was asked and gave none: nobody is asked twice for nothing. */
let declined = false;

/** Says how to ask for a token: `ask(refused)` answers one, or `null` when there is none to be had. */
export function onTokenNeeded(ask) {
  askForToken = ask;
}

/** Asks again for a token that was not given. */
export function askAgain() {
  declined = false;
}

/** Fetches with the token, and asks for one when the server wants it. Answers what the server did. */
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

/** Asks once, however many calls were refused for the same token. */
async function token(shown) {
  if (sessionStorage.getItem(STORED) !== shown) return;
  if (!declined) {
    asking ??= askForToken(shown !== null).finally(() => {
      asking = null;
    });
  }
  const given = await asking;
  declined = given === null;
  if (declined) throw new Problem(401, 'the server wants its admin token');
  sessionStorage.setItem(STORED, given);
}

/** Reads something. `parameters` that are empty are left out. */
export async function get(path, parameters = {}, signal = undefined) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined && value !== '') query.set(name, value);
  }
  const limit = AbortSignal.timeout(PATIENCE);
  const both = signal ? AbortSignal.any([signal, limit]) : limit;
  return answer(await request(query.size > 0 ? `${path}?${query}` : path, { signal: both }));
}

/** Changes something, and answers what came of it. */
export async function change(method, path, body = undefined) {
  const options = { method, signal: AbortSignal.timeout(PATIENCE) };
  if (body !== undefined) {
    options.headers = { 'content-type': 'application/json' };
    options.body = JSON.stringify(body);
  }
  return answer(await request(path, options));
}

/** Takes something away: a session, an override. The note goes to the audit list. */
export function remove(path, note) {
  return change('DELETE', note === '' ? path : `${path}?${new URLSearchParams({ note })}`);
}

async function answer(response) {
  const text = await response.text();
  let said;
  try {
    said = JSON.parse(text);
  } catch {
    said = null;
  }
  if (!response.ok) {
    throw new Problem(
      response.status,
      said?.error ?? (text.trim() || `the server answered ${response.status}`),
    );
  }
  if (said === null) throw new Unreachable('the server did not answer in JSON');
  return said;
}

/** The path of something, every part encoded. */
export const path = (...parts) => `/api/${parts.map(encodeURIComponent).join('/')}`;
