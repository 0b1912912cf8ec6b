// The lists of refused borrows and of the operators' actions.

import { get } from './api.js';
import { Keyed, element, href, table } from './dom.js';
import { cursorPager, emptyNote, heading, moment, refusalTable } from './parts.js';
import { count } from './words.js';

const REFUSALS = 100;
const ENTRIES = 50;

/** The view of the latest refusals, of one organization if its link names one. */
export function refusals({ parameters, changed }) {
  let organization = (parameters.get('organization') ?? '').slice(0, 256);
  const list = refusalTable();
  const input = element('input', {
    type: 'search',
    value: organization,
    placeholder: 'Organization',
    'aria-label': 'Only of this organization',
    maxlength: 256,
    autocomplete: 'off',
    spellcheck: 'false',
    'data-search': true,
    change: () => {
      organization = input.value.trim();
      history.replaceState(history.state, '', href(['refusals'], { organization }));
      changed();
    },
  });
  return {
    title: 'Refusals',
    root: element('div', { class: 'view' }, heading('h1', 'Refusals', input), list.root),
    every: 15,
    async refresh(signal) {
      const page = await get('/api/refusals', { organization, limit: REFUSALS }, signal);
      list.update(page.refusals, organization !== '');
    },
  };
}

/** The view of the operators' actions. */
export function audit({ parameters }) {
  const before = /^\d{1,19}$/.test(parameters.get('before') ?? '') ? parameters.get('before') : '';
  const {
    root: list,
    body,
    row,
  } = table('Actions of operators, the latest first', [
    ['When', 'when'],
    ['From', 'from', 'from'],
    ['What', 'why'],
    ['Note', 'note'],
    ['Ended', 'ended', 'leases ended'],
  ]);
  const rows = new Keyed(
    body,
    ({ number }) => number,
    (entry) => {
      const ended = element('span', { class: 'number' });
      return {
        root: row(
          moment(entry.at),
          element('bdi', {}, entry.from),
          element('bdi', {}, entry.action),
          entry.note && element('bdi', {}, entry.note),
          ended,
        ),
        // The number of ended leases is known a moment later than the rest.
        update: (now) => ended.replaceChildren(now.ended > 0 ? count(now.ended) : ''),
      };
    },
  );
  const none = emptyNote('No operator has done anything yet.');
  const pages = cursorPager('entry', 'entries');
  return {
    title: 'Audit',
    root: element('div', { class: 'view audit' }, heading('h1', 'Audit'), list, none.root, pages.root),
    every: 60,
    async refresh(signal) {
      const { entries } = await get('/api/audit', { before, limit: ENTRIES }, signal);
      rows.show(entries);
      none.update(entries.length === 0);
      const last = entries.at(-1);
      const more = entries.length === ENTRIES ? href(['audit'], { before: last.number }) : null;
      pages.update(null, before === '' ? null : href(['audit']), more);
    },
  };
}
