// Elements, and lists that are updated in place.
//
// Ids come from outside and may contain anything. They enter the document as text nodes and as encoded
// parts of links, never as markup: no module here parses HTML. All text that is shown passes `plain` here.

import { plain } from './words.js';

/** Attributes that are shown or read aloud. */
const VISIBLE_ATTRIBUTES = new Set(['title', 'aria-label']);

const attributeText = (name, text) => (VISIBLE_ATTRIBUTES.has(name) ? plain(text) : text);

/** Makes an element. Strings among the children become text; `null`, `false` and `''` are left out. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === 'function') made.addEventListener(name, value);
    else made.setAttribute(name, value === true ? '' : attributeText(name, String(value)));
  }
  const present = children.flat().filter((child) => child !== null && child !== false && child !== '');
  made.append(...present.map((child) => (typeof child === 'string' ? plain(child) : child)));
  return made;
}

/** Makes an SVG element. */
export function svgElement(tag, attributes = {}, ...children) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Sets the text of a node only if it differs, so that nothing flickers or is read aloud twice. */
export function setText(node, text) {
  const safe = plain(text);
  if (node.textContent !== safe) node.textContent = safe;
}

/** Sets an attribute, or removes it for `null` and `false`, only if that changes something. */
export function setAttribute(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
    return;
  }
  const text = value === true ? '' : attributeText(name, String(value));
  if (node.getAttribute(name) !== text) node.setAttribute(name, text);
}

/** An id from outside; its text direction does not affect the text around it. */
export function id(text) {
  return element('bdi', { class: 'id' }, text);
}

/** A link inside the page; every part of `path` is encoded. */
export function href(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined && value !== '') query.set(name, value);
  }
  const end = query.size > 0 ? `?${query}` : '';
  return `#/${path.map(encodeURIComponent).join('/')}${end}`;
}

/**
 * Keeps the children of `parent` equal to a list: known items are updated in place and keep the focus,
 * new items are made, missing items are removed.
 *
 * `make(item)` returns `{ root, update(item) }`; `update` is called at once.
 */
export class Keyed {
  #parent;
  #key;
  #make;
  #rows = new Map();

  constructor(parent, key, make) {
    this.#parent = parent;
    this.#key = key;
    this.#make = make;
  }

  show(items) {
    const focused = document.activeElement;
    const rows = new Map();
    let place = this.#parent.firstElementChild;
    for (const item of items) {
      const key = this.#key(item);
      const row = this.#rows.get(key) ?? this.#make(item);
      row.update(item);
      rows.set(key, row);
      this.#rows.delete(key);
      if (row.root === place) place = place.nextElementSibling;
      else this.#parent.insertBefore(row.root, place);
    }
    for (const gone of this.#rows.values()) this.#remove(gone.root);
    this.#rows = rows;
    // A row that moves loses the focus.
    if (focused !== document.activeElement && focused?.isConnected) {
      focused.focus({ preventScroll: true });
    }
  }

  /** Calls `visit` for every row that is shown. */
  forEach(visit) {
    this.#rows.forEach(visit);
  }

  /** Removes a row. If one of its buttons has the focus, the same button of a neighbour gets it. */
  #remove(gone) {
    const controls = (row) => [...(row?.querySelectorAll('a[href], button') ?? [])];
    const its = controls(gone);
    const at = its.indexOf(document.activeElement);
    const neighbour = gone.nextElementSibling ?? gone.previousElementSibling;
    gone.remove();
    // Counted from the end: rows have different numbers of links, but the same buttons.
    if (at >= 0)
      controls(neighbour)
        .at(at - its.length)
        ?.focus({ preventScroll: true });
  }
}

/**
 * Makes a table. A column is `[heading, class, label]`. A narrow screen shows rows as blocks, with the
 * label before the value. The roles are explicit, because browsers drop them from a table that is shown
 * as blocks.
 *
 * `row` makes a row from one content per column: a node, a text, or a list of both.
 */
export function table(name, columns) {
  const body = element('tbody', { role: 'rowgroup' });
  const heads = columns.map(([heading, kind]) =>
    element('th', { role: 'columnheader', scope: 'col', class: kind }, heading),
  );
  const head = element('thead', { role: 'rowgroup' }, element('tr', { role: 'row' }, heads));
  const root = element('table', { role: 'table', 'aria-label': name }, head, body);
  const row = (...contents) => {
    const cells = columns.map(([, kind, label], at) =>
      element('td', { role: 'cell', class: kind, 'data-label': label }, contents[at]),
    );
    return element('tr', { role: 'row' }, cells);
  };
  return { root, body, row };
}
