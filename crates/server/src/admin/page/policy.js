// The policy in force: its file, its entries, and the overrides.

import { change, get, path, remove } from './api.js';
import { actionButton } from './dialogs.js';
import { Keyed, element, href, id, setAttribute, setText, table } from './dom.js';
import { badge, emptyNote, heading, moment } from './parts.js';
import { amount, ceiling, count, duration } from './words.js';

/** A button that loads the policy file again. */
export function reloadPolicyButton(words, changed) {
  return actionButton({
    words,
    changed,
    question: () => ({
      title: 'Load the policy file again?',
      action: 'Load',
      danger: true,
      withNote: false,
      paragraphs: [
        'Leases of disabled organizations and API keys, and of spent budgets, end at once. A lowered limit ends no lease.',
        'An invalid file is refused, and the policy in force stays.',
      ],
      perform: () => change('POST', '/api/policy/reload'),
    }),
  });
}

/** A list whose rows never change in place: a changed item gets a new row. */
function fixed(name, columns, cells) {
  const { root, body, row } = table(name, columns);
  const rows = new Keyed(body, JSON.stringify, (item) => ({ root: row(...cells(item)), update() {} }));
  return { root, show: (items) => rows.show(items) };
}

function serviceTable() {
  return fixed(
    'Services',
    [
      ['Service', 'what'],
      ['In all', 'max', 'in all'],
      ['Per organization', 'max', 'per organization'],
      ['Per API key', 'max', 'per API key'],
      ['TTL', 'max', 'TTL'],
      ['Minimal life', 'max', 'minimal life'],
      [element('span', { class: 'unseen' }, 'Remarks'), 'flags'],
    ],
    (service) => [
      id(service.service),
      ceiling(service.max_total),
      ceiling(service.max_per_organization),
      ceiling(service.max_per_api_key),
      duration(service.ttl_seconds),
      duration(service.minimal_life_seconds),
      service.observe && badge('observed', 'observed'),
    ],
  );
}

function planTable() {
  return fixed(
    'Plans',
    [
      ['Plan', 'what'],
      ['Limits', 'limits', 'limits'],
      ['Budgets', 'limits', 'budgets'],
    ],
    ({ plan, limits, budgets }) => [
      id(plan),
      limits.map(({ service, max }) => `${service} ${count(max)}`).join(' · '),
      budgets
        .map((budget) => `${budget.metric} ${amount(budget.metric, budget.amount)}/${budget.per}`)
        .join(' · '),
    ],
  );
}

function clearQuestion(kind, override) {
  const what = override.service === null ? ['disabled'] : ['limits', override.service];
  return {
    title: 'Clear the override?',
    action: 'Clear',
    danger: override.disabled === false,
    paragraphs: [['The policy file applies to ', id(override.id), ' again.']],
    perform: ({ note }) => remove(path(kind, override.id, ...what), note),
  };
}

function overrideWords({ disabled, service, max }) {
  if (disabled !== null) return disabled ? ['disabled'] : ['enabled'];
  return [id(service), ` limit ${ceiling(max)}`];
}

function overrideTable(changed) {
  return fixed(
    'Overrides',
    [
      ['Of', 'who'],
      ['What', 'what'],
      ['Set', 'when'],
      ['Note', 'note'],
      [element('span', { class: 'unseen' }, 'Action'), 'act'],
    ],
    (override) => {
      const kind = override.subject === 'organization' ? 'organizations' : 'api-keys';
      const question = () => clearQuestion(kind, override);
      return [
        [
          element('a', { href: href([kind, override.id]) }, id(override.id)),
          override.subject === 'api_key' && badge('plan', 'API key'),
        ],
        [...overrideWords(override), !override.effective && badge('disabled', 'does not apply')],
        moment(override.set_at),
        override.note && element('bdi', {}, override.note),
        actionButton({ words: 'Clear…', about: `the override of ${override.id}`, changed, question }),
      ];
    },
  );
}

/** The view of the policy. */
export function policy({ changed }) {
  const button = reloadPolicyButton('Load the file again…', changed);
  const words = element('p', {});
  const warnings = element('ul', { class: 'warnings' });
  const lines = new Keyed(warnings, String, (warning) => ({
    root: element('li', {}, warning),
    update() {},
  }));
  const [services, plans, overrides] = [serviceTable(), planTable(), overrideTable(changed)];
  const noPlan = emptyNote('The policy has no plans.');
  const noOverride = emptyNote('There are no overrides: only the policy file applies.');
  const indexers = element('p', {});
  const part = (title, ...content) => element('section', {}, heading('h2', title), ...content);
  const root = element(
    'div',
    { class: 'view policy' },
    heading('h1', 'Policy', button),
    words,
    warnings,
    part('Overrides', overrides.root, noOverride.root),
    part('Services', services.root),
    part('Plans', plans.root, noPlan.root),
    part('Indexers', indexers),
  );
  return {
    title: 'Policy',
    root,
    every: 60,
    async refresh(signal) {
      const now = await get('/api/policy', {}, signal);
      const { file, loaded_at, warnings: warned } = now.status;
      words.replaceChildren(
        file === null ? 'The built-in policy' : element('code', {}, file),
        ', loaded ',
        moment(loaded_at),
      );
      setAttribute(button, 'hidden', file === null);
      lines.show(warned);
      services.show(now.services);
      plans.show(now.plans);
      noPlan.update(now.plans.length === 0);
      overrides.show(now.overrides);
      noOverride.update(now.overrides.length === 0);
      setText(
        indexers,
        now.indexers.length > 0 ? now.indexers.join(', ') : 'None are configured: callers show no key.',
      );
    },
  };
}
