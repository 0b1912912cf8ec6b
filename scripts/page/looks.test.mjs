// Looks and accessibility: a phone, dark mode, the keyboard, and unusual ids.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { barriers, close, launch, live, open, quit, rowOf } from './browser.mjs';
import { Server } from './server.mjs';

const POLICY = `
[services.t1r]
max_total = 100
max_per_organization = 2
max_per_api_key = 5
[services.t2w]
observe = true
[plans.pro]
limits = { t1r = 2 }
budgets = { egress_bytes = { amount = 1e12, per = "month" }, processed_blocks = { amount = 1e7, per = "day" } }
[organizations.acme]
plan = "pro"
[organizations.closed]
disabled = true
`;
const VIEWS = [
  '#/',
  '#/organizations/acme',
  '#/organizations/closed',
  '#/sessions',
  '#/refusals',
  '#/policy',
  '#/audit',
  '#/api-keys/key-1',
  '#/fleet',
];
const HOSTILE = [
  `<img src=x onerror="window.hacked=1">`,
  `"><script>window.hacked=1</script>`,
  `javascript:window.hacked=1`,
  `a/b?c#d%2e\\..`,
  `\u202Ereversed`,
];

let server;
const held = [];

before(async () => {
  await launch();
  server = await Server.start(POLICY);
  held.push(
    ...(await Promise.all([
      server.borrow('acme', '--workers', '3', '--api-key-id', 'key-1'),
      server.borrow('acme', '--trace', '0123456789abcdef'.repeat(2)),
      server.borrow('x'.repeat(256), '--trace', 't'.repeat(256), '--api-key-id', 'k'.repeat(256)),
    ])),
  );
  assert.equal(await server.refused('acme'), 3);
});

after(async () => {
  await quit();
  await Promise.all(held.map((one) => one.release()));
  await server?.remove();
});

for (const hostile of HOSTILE) {
  test(`an organization, key and trace called ${JSON.stringify(hostile)} are text and nothing else`, async () => {
    const borrowed = await server.borrow(hostile, '--trace', hostile, '--api-key-id', hostile);
    const tab = await open(server.page());
    const { page } = tab;
    await live(page);
    const shown = hostile.replace('\u202E', '\\u{202e}');
    await rowOf(page, shown).getByRole('link').click();
    await page.getByRole('heading', { level: 1, name: shown }).waitFor();
    const row = page.locator('.leases-part tbody tr');
    await row.waitFor();
    await row.getByRole('button').click();
    await page.getByRole('dialog').getByText(shown).first().waitFor();
    await page.keyboard.press('Escape');
    await row.locator('.trace a').click();
    await page.getByRole('heading', { level: 1, name: 'Sessions' }).waitFor();
    await row.first().waitFor();
    assert.equal(await row.count(), 1, 'the link to the trace finds it');
    await row.locator('.api-key a').click();
    await page.getByRole('heading', { level: 1, name: shown }).waitFor();
    assert.doesNotMatch(await page.evaluate(() => document.body.innerText + document.title), /\u202E/);
    assert.equal(await page.evaluate(() => window.hacked), undefined);
    assert.equal(await page.locator('main :is(img, script)').count(), 0);
    assert.equal(await borrowed.release(), 0);
    await close(tab);
  });
}

test('a link to the sessions of one organization shows those alone', async () => {
  const other = await server.borrow('other');
  const tab = await open(server.page('#/sessions?organization=other'));
  const { page } = tab;
  await live(page);
  const rows = page.locator('.leases-part tbody tr');
  await rows.first().waitFor();
  assert.deepEqual(await rows.locator('.who').allInnerTexts(), ['other']);
  assert.equal(await page.getByRole('searchbox', { name: 'Organization' }).inputValue(), 'other');
  assert.equal(await other.release(), 0);
  await close(tab);
});

test('nothing scrolls sideways on a phone, whatever the ids', async () => {
  const tab = await open(server.page(), {
    viewport: { width: 360, height: 740 },
    hasTouch: true,
    isMobile: true,
  });
  const { page } = tab;
  for (const view of [...VIEWS, `#/organizations/${'x'.repeat(256)}`]) {
    await page.goto(server.page(view));
    await live(page);
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360, view);
  }
  await page.goto(server.page('#/organizations/acme'));
  await page.getByRole('button', { name: 'Disable…' }).click();
  assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360, 'with a dialog');
  await close(tab);
});

for (const colorScheme of ['light', 'dark']) {
  test(`every view has the contrast, names and roles that axe asks for, in ${colorScheme} mode`, async () => {
    const tab = await open(server.page(), { colorScheme });
    const { page } = tab;
    for (const view of VIEWS) {
      await page.goto(server.page(view));
      await live(page);
      assert.deepEqual(await barriers(page), [], view);
    }
    await page.goto(server.page('#/organizations/acme'));
    await page.getByRole('button', { name: 'Disable…' }).click();
    assert.deepEqual(await barriers(page), [], 'with a dialog');
    const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    assert.equal(Number(ground.match(/\d+/)[0]) < 128, colorScheme === 'dark');
    await close(tab);
  });
}

test('the views can be linked to, and the way back is the way one came', async () => {
  const tab = await open(server.page('#/organizations/acme'));
  const { page } = tab;
  await live(page);
  await page.getByRole('heading', { level: 1, name: 'acme' }).waitFor();
  await page.getByRole('navigation', { name: 'Views' }).getByRole('link', { name: 'Overview' }).click();
  const search = page.getByRole('searchbox', { name: 'Search organizations' });
  await search.waitFor();
  await page.keyboard.press('/');
  await page.keyboard.type('ac');
  await page.waitForURL(/search=ac$/);
  await rowOf(page, 'acme').getByRole('link').press('Enter');
  await page.getByRole('heading', { level: 1, name: 'acme' }).waitFor();
  await page.goBack();
  await search.waitFor();
  assert.equal(await search.inputValue(), 'ac');
  await rowOf(page, 'acme').waitFor();
  assert.equal(await rowOf(page, 'closed').count(), 0);
  await page.goto(server.page('#/nonsense/%zz'));
  await page.getByRole('heading', { name: 'Nothing is here' }).waitFor();
  await close(tab);
});

test('an organization that nobody knows can be disabled before it comes', async () => {
  const tab = await open(server.page('#/organizations/stranger'));
  const { page } = tab;
  await live(page);
  await page.getByRole('button', { name: 'Disable…' }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Disable' }).click();
  await page.getByText('Disabled: override').waitFor();
  assert.equal(await server.refused('stranger'), 3);
  await close(tab);
});
