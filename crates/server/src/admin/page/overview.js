// The totals, the services and the latest refusals, shown around the list of organizations.

import { Keyed, element, href, id, setAttribute, setText } from './dom.js';
import { meter, sparkline } from './meter.js';
import { badge, emptyNote, heading, moment } from './parts.js';
import { byScope, ceiling, clock, count, counted, duration, refused } from './words.js';

/** How many values the line chart of sessions keeps, one a second. */
const REMEMBERED = 300;
/** How many different refusals are shown next to the organizations. */
const REFUSALS = 12;

// The chart continues while another view is shown.
const spark = sparkline(REMEMBERED);
let latest = null;
setInterval(() => {
  if (latest !== null) spark.add(latest);
}, 1000);

/** Sets the number of sessions for the chart. */
export function setSessionCount(overview) {
  if (latest === null) spark.add(overview.sessions);
  latest = overview.sessions;
}

/** The totals, as a list of figures. */
export function totals() {
  const figures = {};
  const figure = (name, label, drawing = null) => {
    const value = element('dd', { class: 'value' });
    const more = element('dd', { class: 'more' });
    const drawn = drawing && element('dd', { class: 'drawing' }, drawing);
    figures[name] = { value, more };
    return element('div', { class: `figure ${name}` }, element('dt', {}, label), value, more, drawn);
  };
  const root = element(
    'dl',
    { class: 'totals' },
    figure('sessions', 'Sessions', spark.root),
    figure('workers', 'Workers'),
    figure('active', 'Active organizations'),
    figure('refusals', 'Refused, last hour'),
    figure('streams', 'Attached streams'),
    figure('overrides', 'Overrides'),
    figure('ready', 'Server'),
    figure('policy', 'Policy'),
  );
  const show = (name, value, more = '') => {
    setText(figures[name].value, value);
    setText(figures[name].more, more);
  };
  return {
    root,
    update(overview) {
      const { policy } = overview;
      show('sessions', count(overview.sessions));
      show('workers', count(overview.workers));
      show('active', count(overview.active_organizations), `of ${count(overview.organizations)} known`);
      show('refusals', count(refused(overview.refusals)), byScope(overview.refusals));
      show('streams', count(overview.attached_streams));
      show('overrides', count(policy.overrides), policy.overrides > 0 ? 'by operators' : '');
      show(
        'ready',
        overview.ready ? 'ready' : 'not ready',
        `${overview.version}, since ${clock(overview.started_at)}`,
      );
      show('policy', policy.file?.split('/').at(-1) ?? 'built in', `loaded ${clock(policy.loaded_at)}`);
      setAttribute(figures.ready.value, 'data-bad', !overview.ready);
      setAttribute(figures.refusals.value, 'data-some', refused(overview.refusals) > 0);
    },
  };
}

/** The limits of a service entry, besides its total, as text. */
export function serviceWords(service) {
  return [
    `${ceiling(service.max_per_organization)} per organization`,
    ...(service.max_per_api_key === null ? [] : [`${ceiling(service.max_per_api_key)} per API key`]),
    `TTL ${duration(service.ttl_seconds)}`,
  ].join(' · ');
}

/** One row per service: its leases and its limits. */
export function services() {
  const list = element('ul', { class: 'services' });
  const rows = new Keyed(
    list,
    (service) => service.service,
    (service) => {
      const bar = meter(service.service);
      const words = element('small', {});
      const observed = badge('observed', 'observed');
      observed.title = 'Limits and budgets of this service are counted, but refuse nobody';
      return {
        root: element('li', {}, bar.root, words, observed),
        update(now) {
          bar.update({ active: now.active, max: now.max_total });
          setText(words, serviceWords(now));
          setAttribute(observed, 'hidden', !now.observe);
        },
      };
    },
  );
  const root = element('section', { class: 'services-part' }, heading('h2', 'Services'), list);
  return { root, update: (overview) => rows.show(overview.services) };
}

/** Groups refusals with the same reason: a client that retries every second is one line. */
function grouped(refusals) {
  const groups = new Map();
  for (const refusal of refusals) {
    const key = JSON.stringify([refusal.organization, refusal.reason, refusal.observed]);
    const group = groups.get(key);
    if (group) group.times += 1;
    else groups.set(key, { key, times: 1, latest: refusal });
  }
  return [...groups.values()].slice(0, REFUSALS);
}

/** The latest refusals, next to the organizations. */
export function latestRefusals() {
  const list = element('ol', { class: 'feed', 'aria-label': 'The latest refusals' });
  const none = emptyNote('No borrow was refused since the server started.');
  const rows = new Keyed(
    list,
    (group) => group.key,
    ({ latest: refusal }) => {
      const when = element('span', { class: 'when' });
      const times = element('span', { class: 'times' });
      const who = element(
        'a',
        { href: href(['organizations', refusal.organization]) },
        id(refusal.organization),
      );
      const why = element('p', {}, element('bdi', {}, refusal.reason));
      return {
        root: element(
          'li',
          {},
          when,
          who,
          refusal.observed && badge('observed', 'only observed'),
          times,
          why,
        ),
        update(group) {
          if (when.dataset.at !== String(group.latest.at)) {
            when.dataset.at = group.latest.at;
            when.replaceChildren(moment(group.latest.at));
          }
          setText(times, group.times > 1 ? `×${count(group.times)}` : '');
          setAttribute(times, 'title', group.times > 1 ? `${counted(group.times, 'time')} lately` : null);
        },
      };
    },
  );
  const all = element('a', { href: href(['refusals']) }, 'All');
  const root = element(
    'section',
    { class: 'feed-part' },
    heading('h2', 'Recent refusals', all),
    list,
    none.root,
  );
  return {
    root,
    update(refusals) {
      rows.show(grouped(refusals));
      none.update(refusals.length === 0);
    },
  };
}
