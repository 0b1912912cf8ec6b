// The servers that share the store: which of them leads, and handing over.

import { change, get } from './api.js';
import { actionButton } from './dialogs.js';
import { Keyed, element, id, setAttribute, setText, table } from './dom.js';
import { badge, heading, moment, running } from './parts.js';
import { counted } from './words.js';

/** How often the servers are read, in seconds: each writes about once a second. */
const EVERY = 2;

function stepDownButton(changed) {
  return actionButton({
    words: 'Hand over…',
    changed,
    question: () => ({
      title: 'Hand the leadership over?',
      action: 'Hand over',
      danger: false,
      paragraphs: [
        'The leader commits what it has applied, and a standby with the same policy takes over.',
        'No call fails, and no session ends.',
      ],
      perform: ({ note }) =>
        change('POST', `/api/fleet/step-down?${new URLSearchParams(note === '' ? {} : { note })}`),
    }),
  });
}

function serverTable() {
  const { root, body, row } = table('Servers', [
    ['Server', 'who'],
    ['Role', 'what'],
    ['Since', 'when', 'since'],
    ['Epoch', 'max', 'epoch'],
    ['Version', 'max', 'version'],
    ['Policy', 'max', 'policy'],
    ['Seen', 'when', 'seen'],
    [element('span', { class: 'unseen' }, 'Remarks'), 'flags'],
  ]);
  const rows = new Keyed(
    body,
    (server) => server.id,
    (server) => {
      const role = element('span', {});
      const since = element('span', {});
      const epoch = element('span', {});
      const policy = element('code', {});
      const seen = running(1);
      return {
        root: row(
          id(server.address),
          role,
          since,
          epoch,
          server.version,
          policy,
          [seen.root, ' ago'],
          server.is_self && badge('plan', 'answers here'),
        ),
        tick: seen.tick,
        update(now) {
          setText(role, now.role);
          setAttribute(role, 'data-role', now.role);
          if (since.dataset.at !== String(now.role_since)) {
            since.dataset.at = now.role_since;
            since.replaceChildren(moment(now.role_since));
          }
          setText(epoch, now.epoch === null ? '' : String(now.epoch));
          setText(policy, now.policy_hash);
          seen.update(now.seen_seconds_ago);
        },
      };
    },
  );
  return { root, rows };
}

/** The view of the fleet. */
export function fleet({ changed }) {
  const button = stepDownButton(changed);
  const words = element('p', {});
  const warnings = element('ul', { class: 'warnings' });
  const lines = new Keyed(warnings, String, (warning) => ({
    root: element('li', {}, warning),
    update() {},
  }));
  const servers = serverTable();
  const root = element(
    'div',
    { class: 'view fleet' },
    heading('h1', 'Fleet', button),
    words,
    warnings,
    servers.root,
  );
  return {
    title: 'Fleet',
    root,
    every: EVERY,
    tick: () => servers.rows.forEach((row) => row.tick()),
    async refresh(signal) {
      const now = await get('/api/fleet', {}, signal);
      setAttribute(button, 'hidden', !now.shared);
      setAttribute(servers.root, 'hidden', !now.shared);
      if (!now.shared) {
        setText(words, 'The store belongs to this server alone: there is no fleet.');
      } else if (now.leader === null) {
        setText(words, `${counted(now.servers.length, 'server')}; nobody leads.`);
      } else {
        const { address, epoch } = now.leader;
        setText(words, `${counted(now.servers.length, 'server')}; ${address} leads in term ${epoch}.`);
      }
      lines.show(now.warnings);
      servers.rows.show(now.servers);
    },
  };
}
