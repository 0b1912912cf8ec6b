// One organization or API key: its limits, leases, usage and refusals.

import { Problem, get, path } from './api.js';
import { Keyed, element, href, id, setAttribute, setText } from './dom.js';
import { budget } from './organizations.js';
import { access, limits } from './override.js';
import { badge, emptyNote, heading, refusalTable, refusals } from './parts.js';
import { leases } from './sessions.js';

/** How many refusals the view of an organization shows. */
const REFUSALS = 20;

/** Loads a subject, or returns `null` if the server does not know it. */
async function known(load) {
  try {
    return await load;
  } catch (error) {
    if (error instanceof Problem && error.status === 404) return null;
    throw error;
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
  const noBudget = emptyNote('It has no budgets.');
  const counts = refusals();
  const refused = refusalTable('organization');
  const held = leases({
    only: { organization: name },
    base: ['organizations', name],
    parameters,
    changed,
  });
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
      heading(
        'h2',
        'Refusals',
        element('span', { class: 'faint' }, 'in the last hour'),
        counts.root,
        all,
      ),
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
      const [now, { refusals: latest }] = await Promise.all([
        known(get(path('organizations', name), {}, signal)),
        get('/api/refusals', { organization: name, limit: REFUSALS }, signal),
        held.refresh(signal),
      ]);
      // An unknown organization can be disabled before its first borrow.
      setAttribute(root, 'data-unknown', now === null);
      setText(
        unknown,
        now === null ? 'This organization is unknown: no entry or override names it, and it holds no lease.' : '',
      );
      itsAccess.update(now?.disabled ?? { disabled: false, source: 'nothing' }, now?.plan);
      if (now === null) return;
      badges.replaceChildren(...(now.plan === null ? [] : [badge('plan', `plan ${now.plan}`)]));
      itsLimits.update(now.services, now.plan);
      lines.show(now.budgets);
      noBudget.update(now.budgets.length === 0);
      counts.update(now.refusals);
      refused.update(latest);
    },
  };
}

/** The limits of an API key without entry and override. */
const anyApiKey = (services) => ({
  disabled: { disabled: false, source: 'nothing' },
  limits: services.map(({ service, max_per_api_key: max }) => ({
    service,
    ceiling: { max, source: max === null ? 'nothing' : 'service' },
  })),
});

/** The view of one API key. */
export function apiKey({ name, parameters, changed }) {
  const itsAccess = access('api-keys', name, changed);
  const itsLimits = limits('api-keys', name, changed);
  const held = leases({ only: { api_key: name }, base: ['api-keys', name], parameters, changed });
  const root = element(
    'div',
    { class: 'view subject' },
    element('p', { class: 'crumbs' }, 'API key'),
    heading('h1', '', itsAccess.root),
    itsLimits.root,
    held.root,
  );
  root.querySelector('h1').append(id(name));
  return {
    title: name,
    root,
    every: 5,
    tick: held.tick,
    async refresh(signal) {
      const [its, { services }] = await Promise.all([
        known(get(path('api-keys', name), {}, signal)),
        get('/api/overview', {}, signal),
        held.refresh(signal),
      ]);
      const now = its ?? anyApiKey(services);
      itsLimits.entries(services);
      itsAccess.update(now.disabled, null);
      itsLimits.update(now.limits, null);
    },
  };
}
