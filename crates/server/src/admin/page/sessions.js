// The list of live leases, and the button that revokes one of them.

import { get, path, remove } from './api.js';
import { actionButton } from './dialogs.js';
import { Keyed, element, href, id, setAttribute, setText, table } from './dom.js';
import { badge, cursorPager, emptyNote, heading, running } from './parts.js';
import { age, count, counted } from './words.js';

const PAGE = 50;
const KINDS = { session: 'sessions', worker: 'workers', any: 'both' };
const ORDERS = { newest: 'newest first', oldest: 'oldest first' };
/** The filters of the list, besides the kind. */
const FILTERS = {
  organization: 'Organization',
  service: 'Service',
  trace: 'Trace id',
  api_key: 'API key',
  indexer: 'Indexer',
};

function revokeQuestion(lease) {
  const ends = lease.workers > 0 ? ` Its ${counted(lease.workers, 'worker')} may end with it.` : '';
  return {
    title: `Revoke this ${lease.kind}?`,
    danger: true,
    action: `Revoke the ${lease.kind}`,
    paragraphs: [
      [
        `The ${lease.kind} of organization `,
        id(lease.organization),
        ` on ${lease.service}, ${age(lease.age_seconds)} old`,
        ...(lease.trace ? [', trace ', id(lease.trace)] : []),
        ' ends at once, and its slot is free.',
        ends,
      ],
      'Its holder is told at once, and may borrow again within the limits. To keep an organization out, disable it.',
    ],
    perform: ({ note }) => remove(path('sessions', lease.lease), note),
  };
}

function leaseRow(row, lease, changed) {
  const old = running(1);
  const left = running(-1);
  const workers = element('span', { class: 'number' });
  const lingers = badge('lingers', 'lingers');
  lingers.title = 'Returned before its minimal life was over; it counts until then';
  let now = lease;
  const about = `the ${lease.kind} of ${lease.organization}, ${lease.trace ? `trace ${lease.trace}` : `number ${lease.lease}`}`;
  const end = actionButton({ words: 'Revoke…', about, changed, question: () => revokeQuestion(now) });
  const link = (filter, value) =>
    value && element('a', { href: href(['sessions'], { [filter]: value }) }, id(value));
  return {
    root: row(
      old.root,
      element('a', { href: href(['organizations', lease.organization]) }, id(lease.organization)),
      [id(lease.service), lease.kind === 'worker' && badge('worker', 'worker'), lingers],
      link('trace', lease.trace),
      lease.api_key && element('a', { href: href(['api-keys', lease.api_key]) }, id(lease.api_key)),
      link('indexer', lease.indexer ?? ''),
      workers,
      left.root,
      end,
    ),
    tick() {
      old.tick();
      left.tick();
    },
    update(next) {
      now = next;
      old.update(next.age_seconds);
      left.update(next.ends_in_seconds);
      setText(workers, next.kind === 'worker' ? '' : count(next.workers));
      setAttribute(lingers, 'hidden', !next.lingers);
    },
  };
}

function choice(label, values, value, chosen) {
  const options = Object.entries(values).map(([name, words]) =>
    element('option', { value: name, selected: name === value }, words),
  );
  const select = element('select', { 'aria-label': label, change: () => chosen(select.value) }, options);
  return select;
}

/** Reads kind, order and filters from the link of the list. */
function readLink(parameters) {
  const now = { kind: 'session', order: 'newest', after: '' };
  for (const name of [...Object.keys(now), ...Object.keys(FILTERS)]) {
    now[name] = (parameters.get(name) ?? now[name] ?? '').slice(0, 256);
  }
  if (!(now.kind in KINDS)) now.kind = 'session';
  if (!(now.order in ORDERS)) now.order = 'newest';
  return now;
}

/** The filters of the list; `narrow(name, value)` is called with each choice. */
function controls(now, names, narrow) {
  const inputs = names.map((name) => {
    const input = element('input', {
      type: 'search',
      value: now[name],
      placeholder: FILTERS[name],
      'aria-label': `Only with this ${FILTERS[name]}`,
      maxlength: 256,
      autocomplete: 'off',
      spellcheck: 'false',
      'data-search': name === 'trace',
      change: () => narrow(name, input.value.trim()),
    });
    return input;
  });
  const kind = choice('Kind', KINDS, now.kind, (value) => narrow('kind', value));
  const order = choice('Order', ORDERS, now.order, (value) => narrow('order', value));
  return element('span', { class: 'filters' }, kind, inputs, order);
}

function leaseTable(changed) {
  const { root, body, row } = table('Leases', [
    ['Age', 'age', 'age'],
    ['Organization', 'who'],
    ['Service', 'what'],
    ['Trace', 'trace', 'trace'],
    ['API key', 'api-key', 'API key'],
    ['Indexer', 'indexer', 'indexer'],
    ['Workers', 'workers', 'workers'],
    ['Ends unless kept alive', 'left', 'ends unless kept alive, in'],
    [element('span', { class: 'unseen' }, 'Action'), 'act'],
  ]);
  const make = (lease) => leaseRow(row, lease, changed);
  return { root, rows: new Keyed(body, ({ lease }) => lease, make) };
}

/**
 * The leases of one organization or API key (`only`), or all leases. `base` is the path of the view that
 * shows them, and `parameters` are those of its link.
 */
export function leases({ only = {}, base, parameters, changed }) {
  const now = { ...readLink(parameters), ...only };
  const names = Object.keys(FILTERS).filter((name) => !(name in only));
  const link = (after) => {
    const said = Object.fromEntries(names.map((name) => [name, now[name]]));
    const kind = now.kind === 'session' ? '' : now.kind;
    const order = now.order === 'newest' ? '' : now.order;
    return href(base, { ...said, kind, order, after });
  };
  const narrow = (name, value) => {
    now[name] = value;
    now.after = '';
    history.replaceState(history.state, '', link(''));
    changed();
  };
  const { root: list, rows } = leaseTable(changed);
  const [one] = Object.keys(only);
  setAttribute(list, 'data-one', one);
  const none = emptyNote('No lease is held.');
  const pages = cursorPager('lease');
  const title = heading(one === undefined ? 'h1' : 'h2', 'Sessions', controls(now, names, narrow));
  return {
    root: element('section', { class: 'leases-part' }, title, list, none.root, pages.root),
    tick: () => rows.forEach((lease) => lease.tick()),
    async refresh(signal) {
      const page = await get('/api/sessions', { ...now, limit: PAGE }, signal);
      rows.show(page.sessions);
      none.update(page.sessions.length === 0);
      const narrowed = names.some((name) => now[name] !== '');
      setText(none.root, narrowed ? 'No lease matches.' : 'No lease is held.');
      const [first, more] = [
        now.after === '' ? null : link(''),
        page.next === null ? null : link(page.next),
      ];
      pages.update(page.total, first, more);
    },
  };
}

/** The view of all leases. */
export function sessions({ parameters, changed }) {
  const list = leases({ base: ['sessions'], parameters, changed });
  return {
    title: 'Sessions',
    root: element('div', { class: 'view' }, list.root),
    every: 5,
    tick: list.tick,
    refresh: list.refresh,
  };
}
