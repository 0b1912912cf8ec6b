// One organization or API key: what it may, where each number comes from, and changing that.

import { Problem, change, get, path } from './api.js';
import { confirm } from './dialogs.js';
import { Keyed, element, href, id, mark, say, table } from './dom.js';
import { meter } from './meter.js';
import { budget } from './organizations.js';
import { badge, heading, nothing, refusalTable, refusals } from './parts.js';
import { leases } from './sessions.js';
import { ceiling, source } from './words.js';

/** How many of an organization's refusals stand in its view. */
const REFUSALS = 20;

const KINDS = {
  organizations: {
    words: 'organization',
    ends: 'Its sessions and workers end at once and its borrows are refused',
  },
  'api-keys': {
    words: 'API key',
    ends: 'The sessions and workers borrowed with it end at once and its borrows are refused',
  },
};

const noted = (where, note) => (note ? `${where}?${new URLSearchParams({ note })}` : where);

/** The switch: disable, enable, and back to what the policy file says. */
function access(kind, name, changed) {
  const { words, ends } = KINDS[kind];
  const where = path(kind, name, 'disabled');
  const act = (question) => async () => (await confirm(question)) && changed();
  const disable = element(
    'button',
    {
      type: 'button',
      class: 'danger',
      click: act({
        title: `Disable this ${words}?`,
        danger: true,
        action: 'Disable',
        says: [
          [
            `${words === 'API key' ? 'API key' : 'Organization'} `,
            id(name),
            ` is disabled. ${ends}, until somebody enables it.`,
          ],
          'This is an override: it wins over the policy file and survives restarts.',
        ],
        perform: ({ note }) => change('PUT', where, { disabled: true, note }),
      }),
    },
    'Disable…',
  );
  const enable = element(
    'button',
    {
      type: 'button',
      class: 'primary',
      click: act({
        title: `Enable this ${words}?`,
        action: 'Enable',
        says: [
          ['Borrows of ', id(name), ' are granted again, within its limits.'],
          'This is an override: it wins over the policy file and survives restarts.',
        ],
        perform: ({ note }) => change('PUT', where, { disabled: false, note }),
      }),
    },
    'Enable…',
  );
  const clear = element(
    'button',
    {
      type: 'button',
      click: act({
        title: 'Clear the override?',
        action: 'Clear',
        danger: true,
        says: [
          [
            'Whether ',
            id(name),
            ' is disabled is for the policy file to say again. If the file disables it, what it holds ends at once.',
          ],
        ],
        perform: ({ note }) => change('DELETE', noted(where, note)),
      }),
    },
    'Clear override…',
  );
  const words_ = element('span', { class: 'access-words' });
  const root = element('div', { class: 'access', hidden: true }, words_, disable, enable, clear);
  return {
    root,
    update({ disabled, source: from }, plan) {
      const state = disabled ? 'Disabled' : 'Enabled';
      mark(root, 'hidden', false);
      say(words_, from === 'nothing' ? state : `${state}: ${source(from, plan)}`);
      mark(root, 'data-disabled', disabled);
      mark(disable, 'hidden', disabled);
      mark(enable, 'hidden', !disabled);
      mark(clear, 'hidden', from !== 'override');
    },
  };
}

/** The ceilings: one row per service, with what is held, where the number comes from, and changing it. */
function ceilings(kind, name, changed) {
  const { words } = KINDS[kind];
  let entries = new Set();
  let plan = null;
  const {
    root: list,
    body,
    row,
  } = table('Limits', [
    ['Service', 'what'],
    [kind === 'organizations' ? 'In use' : 'Limit', 'meters-cell'],
    ['From', 'from', 'from'],
    [element('span', { class: 'unseen' }, 'Actions'), 'act'],
  ]);
  const rows = new Keyed(
    body,
    (service) => service.service,
    (service) => {
      // Services without an entry of their own share the entry "default".
      const entry = () => (entries.has(service.service) ? service.service : 'default');
      const drawn = service.active === undefined ? null : meter(service.service);
      const limit = element('span', { class: 'number' });
      const from = element('span', {});
      let now = service;
      const words_ = () =>
        entry() === service.service
          ? [' on ', id(service.service)]
          : [' on every service without an entry of its own'];
      const set = element(
        'button',
        {
          type: 'button',
          'aria-label': `Set the limit on ${service.service}`,
          click: async () =>
            (await confirm({
              title: `Set the limit of this ${words}`,
              action: 'Set limit',
              limit: now.ceiling.max,
              says: [
                [
                  'At most so many leases of ',
                  id(name),
                  ...words_(),
                  ' at once. What is held already goes on; new borrows are refused until it fits.',
                ],
              ],
              perform: ({ max, note }) =>
                change('PUT', path(kind, name, 'limits', entry()), { max, note }),
            })) && changed(),
        },
        'Set limit…',
      );
      const clear = element(
        'button',
        {
          type: 'button',
          'aria-label': `Clear the override of the limit on ${service.service}`,
          click: async () =>
            (await confirm({
              title: 'Clear the override?',
              action: 'Clear',
              says: [['The limit of ', id(name), ...words_(), ' is what the policy file says again.']],
              perform: ({ note }) => change('DELETE', noted(path(kind, name, 'limits', entry()), note)),
            })) && changed(),
        },
        'Clear…',
      );
      return {
        root: row(id(service.service), drawn?.root ?? limit, from, [set, clear]),
        update(next) {
          now = next;
          const { max, source: origin } = next.ceiling;
          if (drawn) drawn.update({ active: next.active, max });
          say(limit, ceiling(max));
          say(from, source(origin, plan));
          mark(from, 'class', origin === 'override' ? 'badge override' : null);
          mark(set, 'hidden', !entries.has(entry()));
          mark(clear, 'hidden', origin !== 'override');
        },
      };
    },
  );
  return {
    root: element('section', { class: 'limits-part' }, heading('h2', 'Limits'), list),
    entries(services) {
      entries = new Set(services.map(({ service }) => service));
    },
    update(services, itsPlan) {
      plan = itsPlan;
      rows.show(services);
    },
  };
}

/**
 * Shows in words that nobody knows what was asked for, and everything again once somebody does. It can
 * be disabled already: whoever comes under that name is refused then.
 */
async function known(root, unknown, itsAccess, load) {
  try {
    const found = await load();
    mark(root, 'data-unknown', false);
    say(unknown, '');
    return found;
  } catch (error) {
    if (!(error instanceof Problem) || error.status !== 404) throw error;
    mark(root, 'data-unknown', true);
    itsAccess.update({ disabled: false, source: 'nothing' }, null);
    say(unknown, error.message);
    return null;
  }
}

/** The view of one organization. */
export function organization({ name, parameters, changed }) {
  const badges = element('span', { class: 'badges' });
  const unknown = element('p', { class: 'nothing' });
  const itsAccess = access('organizations', name, changed);
  const limits = ceilings('organizations', name, changed);
  const budgets = element('div', { class: 'budgets wide' });
  const lines = new Keyed(
    budgets,
    (b) => `${b.per} ${b.metric}`,
    (b) => budget(b.metric),
  );
  const noBudget = nothing('No budget limits its usage.');
  const counts = refusals();
  const refused = refusalTable();
  const held = leases({ organization: name, base: ['organizations', name], parameters, changed });
  const all = element('a', { href: href(['refusals'], { organization: name }) }, 'All');
  const root = element(
    'div',
    { class: 'view subject' },
    element('p', { class: 'crumbs' }, element('a', { href: '#/' }, 'Organizations')),
    heading('h1', '', badges, itsAccess.root),
    unknown,
    limits.root,
    element('section', { class: 'budgets-part' }, heading('h2', 'Budgets'), budgets, noBudget.root),
    held.root,
    element(
      'section',
      { class: 'refusals-part' },
      heading('h2', 'Refused in the last hour', counts.root, all),
      refused.root,
    ),
  );
  root.querySelector('h1').append(id(name));
  return {
    title: name,
    root,
    every: 5,
    tick: held.tick,
    overview: (overview) => limits.entries(overview.services),
    async refresh(signal) {
      const load = () =>
        Promise.all([
          get(path('organizations', name), {}, signal),
          get('/api/refusals', { organization: name, limit: REFUSALS }, signal),
          held.refresh(signal),
        ]);
      const found = await known(root, unknown, itsAccess, load);
      if (found === null) return;
      const [now, { refusals: latest }] = found;
      badges.replaceChildren(...(now.plan === null ? [] : [badge('plan', `plan ${now.plan}`)]));
      itsAccess.update(now.disabled, now.plan);
      limits.update(now.services, now.plan);
      lines.show(now.budgets);
      noBudget.update(now.budgets.length === 0);
      counts.update(now.refusals);
      refused.update(latest);
    },
  };
}

/** The view of one API key. */
export function apiKey({ name, changed }) {
  const unknown = element('p', { class: 'nothing' });
  const itsAccess = access('api-keys', name, changed);
  const limits = ceilings('api-keys', name, changed);
  const held = element(
    'a',
    { href: href(['sessions'], { api_key: name }) },
    'Sessions borrowed with it',
  );
  const root = element(
    'div',
    { class: 'view subject' },
    element('p', { class: 'crumbs' }, 'API key'),
    heading('h1', '', itsAccess.root),
    unknown,
    limits.root,
    element('p', {}, held),
  );
  root.querySelector('h1').append(id(name));
  return {
    title: name,
    root,
    every: 15,
    overview: (overview) => limits.entries(overview.services),
    async refresh(signal) {
      const now = await known(root, unknown, itsAccess, () => get(path('api-keys', name), {}, signal));
      if (now === null) return;
      itsAccess.update(now.disabled, null);
      limits.update(now.limits, null);
    },
  };
}
