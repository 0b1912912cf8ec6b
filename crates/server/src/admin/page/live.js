// The stream of events and its state. It is read with fetch, because the token is sent in a header.

import { Problem, askAgain, request } from './api.js';

/** The longest silence: the server sends an event or a comment every 10 seconds. */
const SILENCE_TIMEOUT = 25_000;
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 10_000;
/** Longer than any event. More bytes without an end of line are not a stream of events. */
const LONGEST_EVENT = 4_000_000;

/** Reads server-sent events. `heard` is called for all input, also for comments. */
async function* events(body, heard) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  let name = '';
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    const lines = (rest + value).split('\n');
    rest = lines.pop();
    if (rest.length > LONGEST_EVENT) throw new Error('an event is too long');
    for (const whole of lines) {
      const line = whole.endsWith('\r') ? whole.slice(0, -1) : whole;
      if (line === '') {
        if (data.length > 0) yield { name: name || 'message', data: data.join('\n') };
        name = '';
        data = [];
      } else if (line.startsWith('event:')) name = line.slice(6).trimStart();
      else if (line.startsWith('data:')) data.push(line.slice(5).replace(/^ /, ''));
    }
  }
}

/**
 * Reads the events of the server while the page is open, and reconnects.
 *
 * Dispatches `state` when `state` changes, and every event of the server under its name, with the
 * parsed JSON as `detail`.
 */
export class Live extends EventTarget {
  /** `kind` is `connecting`, `live` or `lost`; times are in milliseconds since 1970. */
  state = { kind: 'connecting', since: Date.now(), again: null, problem: null };
  #heard = Date.now();
  #wake = () => {};

  async follow() {
    for (let failures = 0; ; failures += 1) {
      try {
        await this.#attach(() => {
          failures = 0;
        });
        this.#lost('the server closed the connection', failures);
      } catch (error) {
        this.#lost(error instanceof Problem ? error.message : 'the server cannot be reached', failures);
      }
      await this.#pause();
    }
  }

  /** Reconnects now instead of at the end of the pause. */
  retry() {
    askAgain();
    this.#wake();
  }

  async #attach(attached) {
    const attempt = new AbortController();
    let watchdog;
    const heard = () => {
      this.#heard = Date.now();
      clearTimeout(watchdog);
      watchdog = setTimeout(() => attempt.abort(new Error('silence')), SILENCE_TIMEOUT);
    };
    try {
      const response = await request('/api/events', { signal: attempt.signal });
      if (!response.ok) {
        const parsed = await response.json().catch(() => ({}));
        throw new Problem(response.status, parsed.error ?? `the server answered ${response.status}`);
      }
      heard();
      for await (const { name, data } of events(response.body, heard)) {
        attached();
        this.#set({ kind: 'live', since: Date.now(), again: null, problem: null });
        this.dispatchEvent(new CustomEvent(name, { detail: JSON.parse(data) }));
      }
    } finally {
      clearTimeout(watchdog);
      attempt.abort();
    }
  }

  #lost(problem, failures) {
    const since = this.state.kind === 'lost' ? this.state.since : this.#heard;
    const pause = Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** Math.min(failures, 10));
    // The random factor keeps the pages of a team from reconnecting at the same moment.
    this.#set({ kind: 'lost', since, problem, again: Date.now() + pause * (0.75 + Math.random() / 2) });
  }

  #pause() {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, this.state.again - Date.now());
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #set(state) {
    if (state.kind === 'live' && this.state.kind === 'live') return;
    this.state = state;
    this.dispatchEvent(new Event('state'));
  }
}
