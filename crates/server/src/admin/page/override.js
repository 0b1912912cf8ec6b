// Overrides of the policy: an organization or API key is disabled or enabled, and its limits are set.

import { change, path, remove } from './api.js';
import { actionButton } from './dialogs.js';
import { Keyed, element, id, setAttribute, setText, table } from './dom.js';
import { meter } from './meter.js';
import { heading } from './parts.js';
import { ceiling, source } from './words.js';

const WORDS = { organizations: 'organization', 'api-keys': 'API key' };
const LASTS = 'This is an override: it takes precedence over the policy file and survives restarts.';

/** The buttons that disable, enable, and clear the override. */
export function access(kind, name, changed) {
  const what = WORDS[kind];
  const where = path(kind, name, 'disabled');
  const disable = actionButton({
    words: 'Disable…',
    kind: 'danger',
    changed,
    question: () => ({
      title: `Disable this ${what}?`,
      danger: true,
      action: 'Disable',
      paragraphs: [
        [
          'All sessions and workers of ',
          id(name),
          ' end at once. Its borrows are refused until it is enabled.',
        ],
        LASTS,
      ],
      perform: ({ note }) => change('PUT', where, { disabled: true, note }),
    }),
  });
  const enable = actionButton({
    words: 'Enable…',
    kind: 'primary',
    changed,
    question: () => ({
      title: `Enable this ${what}?`,
      action: 'Enable',
      paragraphs: [['Borrows of ', id(name), ' are granted again, within its limits.'], LASTS],
      perform: ({ note }) => change('PUT', where, { disabled: false, note }),
    }),
  });
  const clear = actionButton({
    words: 'Clear override…',
    changed,
    question: () => ({
      title: 'Clear the override?',
      danger: true,
      action: 'Clear',
      paragraphs: [
        [
          'The policy file decides again whether ',
          id(name),
          ' is disabled. If it is, its leases end at once.',
        ],
      ],
      perform: ({ note }) => remove(where, note),
    }),
  });
  const state = element('span', { class: 'access-words' });
  const root = element('div', { class: 'access', hidden: true }, state, disable, enable, clear);
  return {
    root,
    update({ disabled, source: from }, plan) {
      const words = disabled ? 'Disabled' : 'Enabled';
      setText(state, from === 'nothing' ? words : `${words}: ${source(from, plan)}`);
      setAttribute(root, 'hidden', false);
      setAttribute(root, 'data-disabled', disabled);
      setAttribute(disable, 'hidden', disabled);
      setAttribute(enable, 'hidden', !disabled);
      setAttribute(clear, 'hidden', from !== 'override');
    },
  };
}

/** The buttons of one limit. `entry` names its service entry, `now` returns the limit in force. */
function limitButtons({ kind, name, service, entry, now, changed }) {
  const where = () => path(kind, name, 'limits', entry());
  const on = () =>
    entry() === service ? [' on ', id(service)] : [' on services without an entry of their own'];
  const set = actionButton({
    words: 'Set limit…',
    about: `on ${service}`,
    changed,
    question: () => ({
      title: `Set the limit of this ${WORDS[kind]}`,
      action: 'Set limit',
      limit: now().max,
      paragraphs: [
        [
          'Leases of ',
          id(name),
          ...on(),
          '. A lower limit ends no lease; borrows are refused until fewer leases are held.',
        ],
        LASTS,
      ],
      perform: ({ max, note }) => change('PUT', where(), { max, note }),
    }),
  });
  const clear = actionButton({
    words: 'Clear…',
    about: `the override of the limit on ${service}`,
    changed,
    question: () => ({
      title: 'Clear the override?',
      action: 'Clear',
      paragraphs: [['The policy file sets the limit of ', id(name), ...on(), ' again.']],
      perform: ({ note }) => remove(where(), note),
    }),
  });
  return [set, clear];
}

/** The limits: one row per service, with the leases held, the source of the limit, and buttons. */
export function limits(kind, name, changed) {
  let entries = new Set();
  let plan = null;
  const { root, body, row } = table('Limits', [
    ['Service', 'what'],
    [kind === 'organizations' ? 'In use' : 'Limit', 'meters-cell'],
    ['From', 'from', 'from'],
    [element('span', { class: 'unseen' }, 'Actions'), 'act'],
  ]);
  const make = ({ service, active }) => {
    let now;
    // Services without an entry of their own share the entry "default".
    const entry = () => (entries.has(service) ? service : 'default');
    const [set, clear] = limitButtons({ kind, name, service, entry, now: () => now, changed });
    const drawn = active === undefined ? null : meter(service);
    const limit = element('span', { class: 'number' });
    const from = element('span', {});
    return {
      root: row(id(service), drawn?.root ?? limit, from, [set, clear]),
      update(next) {
        now = next.ceiling;
        drawn?.update({ active: next.active, max: now.max });
        setText(limit, ceiling(now.max));
        setText(from, source(now.source, plan));
        setAttribute(from, 'class', now.source === 'override' ? 'badge override' : null);
        setAttribute(set, 'hidden', !entries.has(entry()));
        setAttribute(clear, 'hidden', now.source !== 'override');
      },
    };
  };
  const rows = new Keyed(body, ({ service }) => service, make);
  return {
    root: element('section', { class: 'limits-part' }, heading('h2', 'Limits'), root),
    /** Sets the service entries of the policy: only they can have a limit. */
    entries(services) {
      entries = new Set(services.map(({ service }) => service));
    },
    update(services, itsPlan) {
      plan = itsPlan;
      rows.show(services);
    },
  };
}
