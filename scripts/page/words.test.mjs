// The texts of numbers and times on the page.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

// The modules of the page are for browsers, so there is no package.json that declares their type.
const text = readFileSync(
  new URL('../../crates/server/src/admin/page/words.js', import.meta.url),
  'utf8',
);
const words = await import(`data:text/javascript,${encodeURIComponent(text)}`);

const NONE = { service: 0, organization: 0, api_key: 0, trace: 0, budget: 0, disabled: 0 };

test('a length of time has at most two units', () => {
  const cases = [
    [-3, '0 s'],
    [0.25, '0.3 s'],
    [9, '9 s'],
    [59.2, '59 s'],
    [59.9, '59 s'],
    [60, '1 min'],
    [61, '1 min 1 s'],
    [3599, '59 min 59 s'],
    [3600, '1 h'],
    [5400, '1 h 30 min'],
    [86_399, '23 h 59 min'],
    [86_400, '1 d'],
    [640_000, '7 d 9 h'],
  ];
  for (const [seconds, expected] of cases)
    assert.equal(words.duration(seconds), expected, `${seconds} s`);
});

test('an age counts whole seconds', () => {
  assert.equal(words.age(0.9), '0 s');
  assert.equal(words.age(59.99), '59 s');
  assert.equal(words.age(60.4), '1 min');
});

test('amounts of bytes have units of bytes, others are counted', () => {
  assert.equal(words.amount('egress_bytes', 0), '0 B');
  assert.equal(words.amount('egress_bytes', 999), '999 B');
  assert.equal(words.amount('egress_bytes', 1e12), '1 TB');
  assert.equal(words.amount('egress_bytes', 1.2345e9), '1.23 GB');
  assert.equal(words.amount('egress_bytes', 1e30), '1,000,000,000,000 EB');
  assert.equal(words.amount('processed_blocks', 12_345), '12,345');
  assert.equal(words.amount('processed_blocks', 7.5e6), '7.5 M');
});

test('a limit may be absent, and 0 admits nobody', () => {
  assert.deepEqual([null, 0, 4000].map(words.ceiling), ['no limit', 'nobody', '4,000']);
});

test('a number says where it comes from', () => {
  assert.equal(words.source('plan', 'pro'), 'plan pro');
  assert.equal(words.source('override'), 'override');
  assert.equal(words.source('own'), 'own entry in the policy file');
});

test('refusals are told by what refused them', () => {
  assert.equal(words.byScope(NONE), '');
  assert.equal(
    words.byScope({ ...NONE, organization: 1200, api_key: 3 }),
    '1,200 organization, 3 API key',
  );
  assert.equal(words.refused({ ...NONE, organization: 1200, api_key: 3 }), 1203);
});

test('a moment is told in UTC, and one of another day with its day', () => {
  const noon = Date.UTC(2026, 10, 23, 12, 0, 0);
  const at = noon / 1000;
  assert.equal(words.clock(at, noon + 3_600_000), '12:00:00 UTC');
  assert.match(words.clock(at, noon + 86_400_000), /^23 Nov.* 12:00:00 UTC$/);
  assert.equal(words.fullTime(0), '1970-01-01 00:00:00 UTC');
});

test('what changes how other text is shown is written out, and names in every script stay', () => {
  assert.equal(words.plain('a\u202Eb\u200B\u2028\n\u{E0041}\u009B'), 'a\\u{202e}b\\u{200b}\\u{2028}\\u{a}\\u{e0041}\\u{9b}');
  for (const name of ['acme', 'Zürich', 'नमस्ते', 'ไทย', '組織', 'a b']) assert.equal(words.plain(name), name);
});
