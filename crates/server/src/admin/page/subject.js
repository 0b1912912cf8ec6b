// One organization or API key: what it may, holds and used, and why it was refused.

import { Problem, get, path } from './api.js';
import { Keyed, element, href, id, mark, say } from './dom.js';
import { budget } from './organizations.js';
import { access, limits } from './override.js';
import { badge, heading, nothing, refusalTable, refusals } from './parts.js';
import { leases } from './sessions.js';

/** How many of an organization's refusals stand in its view. */
const REFUSALS = 20;

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
  const itsLimits = limits('organizations', name, changed);
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
    itsLimits.root,
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
    overview: (overview) => itsLimits.entries(overview.services),
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
      itsLimits.update(now.services, now.plan);
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
  const itsLimits = limits('api-keys', name, changed);
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
    itsLimits.root,
    element('p', {}, held),
  );
  root.querySelector('h1').append(id(name));
  return {
    title: name,
    root,
    every: 15,
    overview: (overview) => itsLimits.entries(overview.services),
    async refresh(signal) {
      const now = await known(root, unknown, itsAccess, () => get(path('api-keys', name), {}, signal));
      if (now === null) return;
      itsAccess.update(now.disabled, null);
      itsLimits.update(now.limits, null);
    },
  };
}
