// Parts that several views use: paging, badges, running times, and shared lists.

import { Keyed, element, href, id, setAttribute, setText, table } from './dom.js';
import { age, byScope, clock, counted, fullTime, refused, scopes } from './words.js';

/** A heading of a view or of a section, with elements next to it. */
export function heading(level, text, ...beside) {
  return element('div', { class: 'heading' }, element(level, {}, text), ...beside);
}

/** A badge with a short text. */
export function badge(kind, text) {
  return element('span', { class: `badge ${kind}` }, text);
}

/** The text of an empty list. */
export function emptyNote(text) {
  const root = element('p', { class: 'nothing', hidden: true }, text);
  return { root, update: (empty) => setAttribute(root, 'hidden', !empty) };
}

/** A time; its tooltip shows the exact time. */
export function moment(seconds) {
  const at = new Date(seconds * 1000).toISOString();
  return element('time', { datetime: at, title: fullTime(seconds) }, clock(seconds));
}

/** A number of seconds that runs: `update` sets it, `tick` shows the current value. */
export function running(direction) {
  const root = element('span', { class: 'running' });
  let value = 0;
  let at = 0;
  const tick = () => setText(root, age(value + (direction * (performance.now() - at)) / 1000));
  return {
    root,
    tick,
    update(seconds) {
      value = seconds;
      at = performance.now();
      tick();
    },
  };
}

/** Links to the previous and next page of a numbered list; `link(page)` returns the link of a page. */
export function pager(size, link) {
  const back = element('a', { rel: 'prev' }, '← Back');
  const more = element('a', { rel: 'next' }, 'More →');
  const words = element('span', { role: 'status' });
  const root = element('nav', { class: 'pager', 'aria-label': 'Pages' }, words, back, more);
  return {
    root,
    update(page, shown, total, one, many) {
      const first = (page - 1) * size + 1;
      const part =
        shown < total && shown > 0
          ? `${first.toLocaleString('en')} to ${(first + shown - 1).toLocaleString('en')} of `
          : '';
      setText(words, `${part}${counted(total, one, many)}`);
      step(back, page > 1 ? link(page - 1) : null);
      step(more, first + shown - 1 < total ? link(page + 1) : null);
    },
  };
}

/** Links of a list with cursors: to the first page and to the next one. */
export function cursorPager(one, many) {
  const first = element('a', {}, '← First');
  const more = element('a', { rel: 'next' }, 'More →');
  const words = element('span', { role: 'status' });
  const root = element('nav', { class: 'pager', 'aria-label': 'Pages' }, words, first, more);
  return {
    root,
    update(total, firstLink, moreLink) {
      setText(words, total === null ? '' : counted(total, one, many));
      step(first, firstLink);
      step(more, moreLink);
    },
  };
}

function step(anchor, link) {
  setAttribute(anchor, 'href', link);
  setAttribute(anchor, 'hidden', link === null);
}

/** The number of refused borrows in the last hour, and their scopes. */
export function refusals() {
  const number = element('span', { class: 'number' });
  const words = element('small', {});
  const root = element('div', { class: 'refused' }, number, words);
  return {
    root,
    update(counts) {
      const all = refused(counts);
      setText(number, all.toLocaleString('en'));
      setText(words, byScope(counts));
      setAttribute(root, 'data-some', all > 0);
    },
  };
}

/** Gives equal refusals different keys, counted from the oldest. */
export function withKeys(list, name) {
  const seen = new Map();
  return list
    .toReversed()
    .map((item) => {
      const kind = name(item);
      const nth = (seen.get(kind) ?? 0) + 1;
      seen.set(kind, nth);
      return { ...item, key: `${nth} ${kind}` };
    })
    .toReversed();
}

/** The table of refused borrows. `only` is `organization` if all are of one organization. */
export function refusalTable(only = null) {
  const { root, body, row } = table('Refused borrows, the latest first', [
    ['When', 'when'],
    ['Organization', 'who'],
    ['Service', 'what'],
    ['Scope', 'scope'],
    ['Reason', 'why'],
    ['API key', 'api-key', 'API key'],
    ['Trace', 'trace', 'trace'],
  ]);
  setAttribute(root, 'data-one', only);
  const none = emptyNote('');
  const rows = new Keyed(
    body,
    (refusal) => refusal.key,
    (refusal) => ({
      root: row(
        moment(refusal.at),
        element('a', { href: href(['organizations', refusal.organization]) }, id(refusal.organization)),
        id(refusal.service),
        [scopes[refusal.scope] ?? refusal.scope, refusal.observed && badge('observed', 'only observed')],
        element('bdi', {}, refusal.reason),
        refusal.api_key &&
          element('a', { href: href(['api-keys', refusal.api_key]) }, id(refusal.api_key)),
        refusal.trace &&
          element('a', { href: href(['sessions'], { trace: refusal.trace }) }, id(refusal.trace)),
      ),
      update() {},
    }),
  );
  return {
    root: element('div', { class: 'refusal-table' }, root, none.root),
    /** `narrowed` means that only the refusals of one organization are listed. */
    update(list, narrowed = only !== null) {
      rows.show(withKeys(list, (refusal) => JSON.stringify(refusal)));
      none.update(list.length === 0);
      setText(
        none.root,
        narrowed
          ? 'None of the latest refused borrows was of this organization.'
          : 'No borrow was refused since the server started.',
      );
    },
  };
}
