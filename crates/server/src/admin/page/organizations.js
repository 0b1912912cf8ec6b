// The overview: totals, services, and a row per organization. The server searches, sorts and pages.

import { get } from './api.js';
import { Keyed, element, href, id, setAttribute, setText, table } from './dom.js';
import { bar, meter } from './meter.js';
import { latestRefusals, services, totals } from './overview.js';
import { badge, emptyNote, heading, pager, refusals } from './parts.js';
import { amount, clock, duration } from './words.js';

const PAGE = 50;
const TYPING_DELAY = 150;
const ORDERS = {
  fullest: 'fullest first',
  active: 'most leases first',
  refused: 'most refused first',
  name: 'by name',
};

/** Whether an operator has overridden something of an organization. */
export function overridden(organization) {
  return (
    organization.disabled.source === 'override' ||
    organization.services.some(({ ceiling }) => ceiling.source === 'override')
  );
}

/** A budget: how much is used, a bar, and when it resets. */
export function budget(name) {
  const said = element('span', { class: 'number' });
  const line = bar();
  const resets = element('small', {});
  const root = element(
    'div',
    { class: 'budget' },
    element('bdi', { class: 'label' }, name),
    said,
    line.root,
    resets,
  );
  return {
    root,
    update({ metric, used, amount: whole, per, resets_at, spent }) {
      const share = whole > 0 ? used / whole : 1;
      setText(said, spent ? 'spent' : `${amount(metric, used)} used`);
      setAttribute(root, 'data-level', spent ? 'full' : share >= 0.8 ? 'nearly' : 'calm');
      line.update(share);
      const wait = duration(resets_at - Date.now() / 1000);
      setText(resets, `of ${amount(metric, whole)}/${per} · resets in ${wait}`);
      setAttribute(resets, 'title', `at ${clock(resets_at)}`);
    },
  };
}

function organizationRow(row, { organization }) {
  const badges = element('span', { class: 'badges' });
  const meters = element('div', { class: 'meters' });
  const budgets = element('div', { class: 'budgets' });
  const counts = refusals();
  const bars = new Keyed(
    meters,
    (service) => service.service,
    (service) => adapt(meter(service.service)),
  );
  const lines = new Keyed(
    budgets,
    (b) => `${b.per} ${b.metric}`,
    (b) => budget(b.metric),
  );
  let shown = null;
  const name = element(
    'a',
    { class: 'whole-row', href: href(['organizations', organization]) },
    id(organization),
  );
  return {
    root: row(element('div', { class: 'named' }, name, badges), meters, budgets, counts.root),
    update(now) {
      const kinds = JSON.stringify([now.plan, now.disabled, overridden(now)]);
      if (kinds !== shown) {
        shown = kinds;
        badges.replaceChildren(
          ...[
            now.plan !== null && badge('plan', now.plan),
            now.disabled.disabled && badge('disabled', 'disabled'),
            overridden(now) && badge('override', 'override'),
          ].filter(Boolean),
        );
      }
      bars.show(now.services);
      lines.show(now.budgets);
      counts.update(now.refusals);
    },
  };
}

function adapt(drawn) {
  return {
    root: drawn.root,
    update: ({ active, ceiling }) => drawn.update({ active, max: ceiling.max }),
  };
}

/** Reads search, order and page from the link of the view. */
function readLink(parameters) {
  const page = Number(parameters.get('page') ?? 1);
  const sort = parameters.get('sort') ?? 'fullest';
  return {
    search: (parameters.get('search') ?? '').slice(0, 256),
    sort: sort in ORDERS ? sort : 'fullest',
    page: Number.isSafeInteger(page) && page > 0 ? Math.min(page, 200_000) : 1,
  };
}

function link({ search, sort, page }) {
  return href([], { search, sort: sort === 'fullest' ? '' : sort, page: page > 1 ? page : '' });
}

/** The view of all organizations. */
export function organizations({ parameters, changed }) {
  const now = readLink(parameters);
  const search = element('input', {
    type: 'search',
    value: now.search,
    placeholder: 'Search   /',
    'aria-label': 'Search organizations',
    maxlength: 256,
    autocomplete: 'off',
    spellcheck: 'false',
    'data-search': true,
  });
  const options = Object.entries(ORDERS).map(([value, words]) =>
    element('option', { value, selected: value === now.sort }, words),
  );
  const sort = element('select', { 'aria-label': 'Sort organizations' }, options);
  const move = () => {
    now.page = 1;
    history.replaceState(history.state, '', link(now));
    changed();
  };
  let typing;
  search.addEventListener('input', () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      now.search = search.value;
      move();
    }, TYPING_DELAY);
  });
  sort.addEventListener('change', () => {
    now.sort = sort.value;
    move();
  });

  const {
    root: list,
    body,
    row,
  } = table('Organizations', [
    ['Organization', 'who'],
    ['In use', 'meters-cell'],
    ['Budget used', 'budgets-cell'],
    ['Refused, 1 h', 'refused-cell'],
  ]);
  const rows = new Keyed(
    body,
    ({ organization }) => organization,
    (item) => organizationRow(row, item),
  );
  const none = emptyNote('No organization matches.');
  const pages = pager(PAGE, (page) => link({ ...now, page }));
  const [sum, entries, feed] = [totals(), services(), latestRefusals()];
  const part = element(
    'section',
    { class: 'organizations-part' },
    heading('h2', 'Organizations', search, sort),
    list,
    none.root,
    pages.root,
  );
  return {
    title: 'Overview',
    root: element(
      'div',
      { class: 'view home' },
      element('h1', { class: 'unseen' }, 'Overview'),
      sum.root,
      entries.root,
      part,
      feed.root,
    ),
    every: 15,
    overview(overview) {
      sum.update(overview);
      entries.update(overview);
    },
    async refresh(signal) {
      const offset = (now.page - 1) * PAGE;
      const [page, { refusals: latest }] = await Promise.all([
        get('/api/organizations', { search: now.search, sort: now.sort, offset, limit: PAGE }, signal),
        get('/api/refusals', { limit: 200 }, signal),
      ]);
      rows.show(page.organizations);
      pages.update(now.page, page.organizations.length, page.total, 'organization');
      setText(
        none.root,
        now.search
          ? 'No organization matches.'
          : 'No organization is known yet. It appears here with its first borrow.',
      );
      none.update(page.organizations.length === 0);
      feed.update(latest);
    },
  };
}
