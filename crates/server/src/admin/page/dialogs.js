// Dialogs that say what an action will do, and ask the operator to confirm it.

import { element, setText } from './dom.js';
import { counted } from './words.js';

/** The longest note that the server keeps, in characters. */
const LONGEST_NOTE = 512;
const SHOWN_FOR = 10_000;

let hiding;
let number = 0;

/** Shows the result of an action for some seconds; screen readers read it aloud. */
export function announce(text) {
  const place = document.getElementById('announcement');
  setText(place, text);
  clearTimeout(hiding);
  hiding = setTimeout(() => setText(place, ''), SHOWN_FOR);
}

/** Shows a dialog until it closes. Returns the argument of `finish`, or `null`. */
function openDialog(title, build) {
  number += 1;
  const heading = element('h2', { id: `dialog-${number}` }, title);
  const dialog = element('dialog', { 'aria-labelledby': heading.id });
  let outcome = null;
  const finish = (value) => {
    outcome = value;
    dialog.close();
  };
  const form = element('form', { method: 'dialog' }, heading);
  const focus = build(form, finish);
  dialog.append(form);
  document.body.append(dialog);
  const opener = document.activeElement;
  dialog.showModal();
  focus.focus();
  focus.select?.();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => {
      dialog.remove();
      // The button that opened the dialog may be gone, for example with its session.
      if (opener?.isConnected) opener.focus({ preventScroll: true });
      else document.getElementById('main').focus({ preventScroll: true });
      resolve(outcome);
    });
  });
}

function field(label, input) {
  return element('label', {}, element('span', {}, label), input);
}

/**
 * Asks for confirmation, then calls `perform({ max, note })`, which returns the result. If it fails,
 * the dialog stays open and shows the error.
 *
 * `paragraphs` say what will happen. With `limit` the dialog also asks for a limit; without `withNote`
 * it asks for no note. If the action ends leases (`danger`), the focus is on "Cancel", so that a stray
 * Enter ends no session.
 */
function confirm({ title, paragraphs, action, danger = false, withNote = true, limit = undefined, perform }) {
  return openDialog(title, (form, finish) => {
    const max = limit === undefined ? null : limitInput(limit);
    const note = element('input', { name: 'note', maxlength: LONGEST_NOTE, autocomplete: 'off' });
    const failure = element('p', { class: 'failure', role: 'alert' });
    const cancel = element('button', { type: 'button', click: () => finish(null) }, 'Cancel');
    const go = element('button', { type: 'submit', class: danger ? 'danger' : 'primary' }, action);
    form.append(
      ...paragraphs.map((text) => element('p', {}, ...[text].flat())),
      ...(max === null ? [] : [field('Limit (0 admits nobody)', max)]),
      ...(withNote ? [field('Note for the audit list (optional)', note)] : []),
      failure,
      element('p', { class: 'buttons' }, cancel, go),
    );
    form.addEventListener('submit', async (event) => {
      event.preventDefault();
      go.disabled = true;
      setText(failure, '');
      try {
        const done = await perform({
          max: max === null ? null : Number(max.value),
          note: note.value.trim(),
        });
        const ended = done.ended > 0 ? ` (${counted(done.ended, 'lease')} ended)` : '';
        announce(`${done.summary}${ended}`);
        finish(done);
      } catch (error) {
        setText(failure, error.message);
        go.disabled = false;
        go.focus();
      }
    });
    if (max !== null) return max;
    return danger ? cancel : go;
  });
}

/**
 * A button that asks for confirmation, and calls `changed` after the action. `about` tells users of
 * screen readers which row the button belongs to.
 */
export function actionButton({ words, about = null, kind = null, changed, question }) {
  const label = about === null ? null : `${words} ${about}`;
  const ask = async () => (await confirm(question())) && changed();
  return element('button', { type: 'button', class: kind, 'aria-label': label, click: ask }, words);
}

function limitInput(value) {
  return element('input', {
    name: 'max',
    type: 'number',
    min: 0,
    max: 1_000_000_000_000,
    step: 1,
    required: true,
    inputmode: 'numeric',
    value: value ?? '',
  });
}

/** Asks for the admin token; `refused` says that the previous one was wrong. */
export function askToken(refused) {
  return openDialog('The admin token', (form, finish) => {
    const token = element('input', {
      name: 'token',
      type: 'password',
      required: true,
      autocomplete: 'off',
      spellcheck: 'false',
    });
    form.append(
      element('p', {}, 'This server requires its admin token.'),
      field('Token', token),
      element(
        'p',
        { class: 'failure', role: 'alert' },
        refused ? 'The server refused the previous token.' : '',
      ),
      element('p', { class: 'faint' }, 'The token is kept until this tab closes.'),
      element(
        'p',
        { class: 'buttons' },
        element('button', { type: 'button', click: () => finish(null) }, 'Cancel'),
        element('button', { type: 'submit', class: 'primary' }, 'Show'),
      ),
    );
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      finish(token.value);
    });
    return token;
  });
}
