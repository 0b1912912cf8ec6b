// The operator's page: it selects the view, keeps it up to date, and shows banners above it.

import { Problem, get, onTokenNeeded } from './page/api.js';
import { announce, askToken } from './page/dialogs.js';
import { element, setAttribute, setText } from './page/dom.js';
import { fleet } from './page/fleet.js';
import { Live } from './page/live.js';
import { organizations } from './page/organizations.js';
import { setSessionCount } from './page/overview.js';
import { policy, reloadPolicyButton } from './page/policy.js';
import { audit, refusals } from './page/records.js';
import { sessions } from './page/sessions.js';
import { apiKey, organization } from './page/subject.js';
import { clock, counted, duration, plain } from './page/words.js';

/** The shortest pause between two refreshes, in milliseconds; SHARE keeps them below a third of the time. */
const PAUSE = 300;
const SHARE = 2;
/** A view that takes longer to load than this, in milliseconds, is shown before it has its data. */
const LOADING_DELAY = 250;

const main = document.getElementById('main');
const live = new Live();
let overview = null;
let version = null;
/** The view that is shown: `root`, `title`, `every` (seconds), `refresh(signal)`, and optional methods. */
let view = null;
let leaving = new AbortController();
const scrolled = new Map();
let visits = 0;

// Views by the path of their link.
const views = {
  '': organizations,
  organizations: (context) =>
    context.name === undefined ? organizations(context) : organization(context),
  'api-keys': (context) => (context.name === undefined ? null : apiKey(context)),
  sessions,
  refusals,
  policy,
  audit,
  fleet,
};

/** Makes the view of an address, or one that says that nothing is there. */
function viewOf(address) {
  const [where, query = ''] = address.replace(/^#?\/?/, '').split('?', 2);
  let names;
  try {
    names = where.split('/').map(decodeURIComponent);
  } catch {
    names = ['?'];
  }
  const [kind, name, ...rest] = names;
  const make = Object.hasOwn(views, kind) && rest.length === 0 ? views[kind] : null;
  const made = make?.({
    name: name || undefined,
    parameters: new URLSearchParams(query),
    changed: () => updates.soon(),
  });
  return { kind, ...(made ?? notFound()) };
}

function notFound() {
  const back = element('a', { href: '#/' }, 'all organizations');
  const root = element(
    'div',
    { class: 'view' },
    element('h1', {}, 'Nothing is here'),
    element('p', {}, 'Go to ', back, '.'),
  );
  return { title: 'Nothing is here', root, every: 3600, refresh: async () => {} };
}

/** Keeps the view up to date: one request after another, with pauses that protect the server. */
const updates = {
  timer: null,
  running: false,
  wanted: false,
  earliest: 0,

  soon() {
    this.wanted = true;
    // The first view loads itself, and a hidden page can wait.
    if (view === null || this.running || this.timer !== null || document.hidden) return;
    this.timer = setTimeout(() => this.run(), Math.max(0, this.earliest - performance.now()));
  },

  async run() {
    this.timer = null;
    this.running = true;
    this.wanted = false;
    const began = performance.now();
    await refresh(view, leaving.signal);
    const took = performance.now() - began;
    this.earliest = performance.now() + Math.max(PAUSE, took * SHARE);
    this.running = false;
    if (this.wanted) this.soon();
  },
};

let refreshed = 0;

async function refresh(which, signal) {
  try {
    await which.refresh(signal);
    refreshed = performance.now();
    if (which === view) banner('stale', null);
  } catch (error) {
    if (signal.aborted) return;
    // A lost connection is shown already.
    const isNew = error instanceof Problem || live.state.kind === 'live';
    if (which === view && isNew)
      banner('stale', [`This view could not be updated: ${error.message}`]);
  }
}

/** Shows the view of the address when it has its data, or when that takes too long. */
async function show() {
  leaving.abort(new Error('another view'));
  leaving = new AbortController();
  const { signal } = leaving;
  const next = viewOf(location.hash);
  const visited = history.state?.visit;
  if (visited === undefined) history.replaceState({ visit: (visits += 1) }, '');
  setAttribute(main, 'aria-busy', 'true');
  const loaded = refresh(next, signal);
  await Promise.race([loaded, new Promise((resolve) => setTimeout(resolve, LOADING_DELAY))]);
  if (signal.aborted) return;
  const first = view === null;
  view = next;
  if (overview !== null) view.overview?.(overview);
  main.replaceChildren(next.root);
  document.title = `${plain(next.title)} · tgm-session`;
  for (const link of document.querySelectorAll('header nav a')) {
    const kind = link.hash.slice(2);
    setAttribute(
      link,
      'aria-current',
      kind === next.kind || (kind === '' && next.kind === 'organizations') ? 'page' : null,
    );
  }
  if (!first && document.activeElement === document.body) main.focus({ preventScroll: true });
  await loaded;
  if (signal.aborted) return;
  setAttribute(main, 'aria-busy', 'false');
  window.scrollTo(0, visited === undefined ? 0 : (scrolled.get(visited) ?? 0));
  updates.soon();
}

addEventListener('hashchange', show);
addEventListener('scroll', () => scrolled.set(history.state?.visit, scrollY), { passive: true });
history.scrollRestoration = 'manual';

// The banners above every view.

const bannerTexts = new Map();

/** Sets the text of a banner; `null` removes it. `button` makes the button next to the text. */
function banner(kind, content, button = () => null) {
  const words = content?.join(' ') ?? null;
  if (bannerTexts.get(kind) === words) return;
  bannerTexts.set(kind, words);
  document.querySelector(`#banners > [data-kind="${kind}"]`)?.remove();
  if (content === null) return;
  const [first, ...rest] = content;
  const made = element(
    'div',
    { class: 'banner', 'data-kind': kind },
    element('p', {}, element('strong', {}, first), ...rest.map((text) => ` ${text}`)),
    button(),
  );
  document.getElementById('banners').append(made);
}

const reloadButton = () => reloadPolicyButton('Load it again…', () => updates.soon());

function reloadPageButton() {
  return element('button', { type: 'button', click: () => location.reload() }, 'Reload the page');
}

function banners() {
  const { ready, problem, policy: status } = overview;
  banner('ready', ready ? null : ['The server accepts no changes.', problem ?? '']);
  banner(
    'policy',
    status.refused === null
      ? null
      : [
          'The policy file was refused.',
          status.refused,
          `The policy loaded ${clock(status.loaded_at)} stays in force.`,
        ],
    reloadButton,
  );
  banner(
    'version',
    version === overview.version ? null : [`The server now runs ${overview.version}.`],
    reloadPageButton,
  );
}

live.addEventListener('overview', ({ detail }) => {
  overview = detail;
  version ??= detail.version;
  setSessionCount(detail);
  banners();
  view?.overview?.(detail);
  updates.soon();
});
for (const name of ['refusal', 'audit', 'policy']) live.addEventListener(name, () => updates.soon());

/** How often the fleet is checked while another view is shown, in milliseconds. */
const FLEET_EVERY = 10_000;
const fleetLink = document.querySelector('header nav a[href="#/fleet"]');
let fleetChecked = -FLEET_EVERY;

/** Shows the link to the fleet, if the store is one of a fleet, and what an operator should look at. */
async function checkFleet() {
  if (performance.now() - fleetChecked < FLEET_EVERY) return;
  fleetChecked = performance.now();
  try {
    const { shared, warnings } = await get('/api/fleet');
    setAttribute(fleetLink, 'hidden', !shared);
    banner('fleet', warnings.length > 0 ? ['The fleet:', `${warnings.join('; ')}.`] : null);
  } catch {
    // A lost connection is shown already.
  }
}

const connection = document.getElementById('connection');
const connectionWords = document.getElementById('connection-words');
const again = document.getElementById('connection-again');
const retry = document.getElementById('connection-retry');

live.addEventListener('state', () => {
  const { kind, since, problem } = live.state;
  const words = {
    connecting: 'connecting',
    live: 'live',
    lost:
      overview === null
        ? `not connected: ${problem}`
        : `connection lost since ${clock(since / 1000)}: ${problem}`,
  };
  setAttribute(connection, 'data-kind', kind);
  setText(connectionWords, words[kind]);
  setAttribute(retry, 'hidden', kind !== 'lost');
  setAttribute(main, 'data-stale', kind === 'lost');
  countdown();
  if (kind === 'live') updates.soon();
});
retry.addEventListener('click', () => live.retry());
addEventListener('online', () => live.retry());

function countdown() {
  const { kind, since, again: at } = live.state;
  const wait = Math.max(0, Math.ceil((at - Date.now()) / 1000));
  setText(
    again,
    kind === 'lost'
      ? `for ${duration(Math.round((Date.now() - since) / 1000))}, trying again in ${counted(wait, 'second')}`
      : '',
  );
}

// Updates without an event of the server: ages, the countdown, and lists that change silently.
setInterval(() => {
  countdown();
  if (document.hidden || view === null) return;
  view.tick?.();
  if (live.state.kind === 'live') checkFleet();
  if (performance.now() - refreshed > view.every * 1000) updates.soon();
}, 1000);

document.addEventListener('visibilitychange', () => {
  if (document.hidden) return;
  if (live.state.kind === 'lost') live.retry();
  updates.soon();
});

document.addEventListener('keydown', (event) => {
  if (event.key !== '/' || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest?.('input, select, textarea, dialog')) return;
  const search = main.querySelector('input[data-search]');
  if (search === null) return;
  event.preventDefault();
  search.focus();
  search.select();
});

addEventListener('unhandledrejection', (event) =>
  announce(`The page failed: ${event.reason?.message ?? event.reason}`),
);

// The address of this link is not a view.
document.querySelector('a.skip').addEventListener('click', (event) => {
  event.preventDefault();
  main.focus();
});

onTokenNeeded(askToken);
live.follow();
show();
