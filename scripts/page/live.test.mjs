// The page shows what happens on the server.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { close, inTime, launch, live, open, quit, rowOf } from './browser.mjs';
import { Server } from './server.mjs';

const POLICY = `
[services.t1r]
max_per_organization = 2
[services.t2w]
max_per_organization = 20
`;

let server;

before(async () => {
  await launch();
  server = await Server.start(POLICY);
});

after(async () => {
  await quit();
  await server?.remove();
});

test('the page loads without a fault and says that it is live', async () => {
  const tab = await open(server.page());
  await live(tab.page);
  assert.match(await tab.page.locator('.figure.ready').innerText(), /ready/);
  assert.match(await tab.page.locator('.services').innerText(), /t1r[\s\S]*2 per organization/);
  await close(tab);
});

test('events that come before the first list are no fault', async () => {
  const tab = await open('about:blank');
  const { page } = tab;
  await page.route('**/api/organizations?*', async (route) => {
    await page.locator('#connection[data-kind="live"]').waitFor();
    await route.continue();
  });
  await page.goto(server.page());
  await live(page);
  await page.locator('.figure.sessions').getByText('0', { exact: true }).waitFor();
  await close(tab);
});

test('the page needs no other host and may load nothing that is not its own', async () => {
  const tab = await open(server.page());
  const asked = [];
  tab.page.on('request', (request) => asked.push(new URL(request.url()).origin));
  const [response] = await Promise.all([tab.page.waitForResponse(server.page()), tab.page.reload()]);
  await live(tab.page);
  const policy = response.headers()['content-security-policy'];
  for (const rule of [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
  ]) {
    assert.ok(policy.includes(rule), `${rule} is missing in: ${policy}`);
  }
  assert.ok(asked.length > 5);
  assert.deepEqual([...new Set(asked)], [new URL(server.page()).origin]);
  await close(tab);
});

test('a borrow is shown within a second, and so is its return', async () => {
  const tab = await open(server.page());
  await live(tab.page);
  const row = rowOf(tab.page, 'prompt');
  await inTime(async ({ soon }) => {
    const held = await server.borrow('prompt', '--workers', '3');
    await soon(tab.page, 'the row', row.waitFor());
    await soon(tab.page, 'the session', row.getByText('1 / 2', { exact: true }).waitFor());
    await soon(tab.page, 'the workers', row.getByText('3 / 20').waitFor());
    assert.equal(await held.release(), 0);
    await soon(tab.page, 'the return', row.waitFor({ state: 'detached' }));
  });
  await close(tab);
});

test('a refused borrow is shown with its reason', async () => {
  const tab = await open(server.page());
  await live(tab.page);
  const held = await Promise.all([server.borrow('greedy'), server.borrow('greedy')]);
  assert.equal(await server.refused('greedy'), 3);
  const feed = tab.page.locator('.feed-part li').filter({ hasText: 'greedy' });
  await feed.getByText(/greedy.*2.*2.*t1r/).waitFor();
  await rowOf(tab.page, 'greedy').getByText('1 organization').waitFor();
  await tab.page.getByRole('link', { name: 'All' }).click();
  await tab.page.locator('.refusal-table tbody tr').getByText('greedy', { exact: true }).waitFor();
  await Promise.all(held.map((one) => one.release()));
  await close(tab);
});

test('a row that moves up is the same row, and keeps the focus', async () => {
  const held = [await server.borrow('another'), await server.borrow('steady')];
  const tab = await open(server.page());
  const rows = tab.page.locator('.organizations-part tbody tr');
  await live(tab.page);
  await rows.first().getByText('another').waitFor();
  const link = rowOf(tab.page, 'steady').getByRole('link');
  await link.focus();
  await link.evaluate((element) => {
    window.before = element;
  });
  held.push(await server.borrow('steady'));
  await rows.first().getByText('steady').waitFor();
  assert.ok(
    await link.evaluate((element) => element === window.before && element === document.activeElement),
  );
  await Promise.all(held.map((one) => one.release()));
  await close(tab);
});

test('a lost connection is said and what is shown is dimmed, until the server is back', async () => {
  const held = await server.borrow('patient');
  const tab = await open(server.page());
  const { page } = tab;
  await live(page);
  await rowOf(page, 'patient').waitFor();
  const colour = () =>
    page.locator('.figure.sessions .value').evaluate((element) => getComputedStyle(element).color);
  const bright = await colour();
  await server.stop('SIGKILL');
  await page.getByText(/connection lost since \d\d:\d\d:\d\d/).waitFor();
  assert.notEqual(await colour(), bright);
  assert.ok(await rowOf(page, 'patient').isVisible(), 'what was known last is still shown');
  assert.ok(await page.getByRole('button', { name: 'Try now' }).isVisible());
  await server.start();
  await live(page);
  assert.equal(await colour(), bright);
  await rowOf(page, 'patient').getByText('1 / 2').waitFor();
  assert.equal(await held.release(), 0);
  await rowOf(page, 'patient').waitFor({ state: 'detached' });
  await close(tab);
});

test('a refused policy file is told with its line and reason until it is mended', async () => {
  const tab = await open(server.page());
  const { page } = tab;
  await live(page);
  server.setPolicy(`${POLICY}\n[organizations.acme]\nplan = "gold"\n`);
  const banner = page.locator('.banner[data-kind="policy"]');
  await banner.getByText(/policy\.toml.*\d+.*gold/).waitFor();
  assert.match(await banner.innerText(), /stays in force/);
  server.setPolicy(
    `${POLICY}\n[plans.gold]\nlimits = { t1r = 7 }\n[organizations.acme]\nplan = "gold"\n`,
  );
  await banner.waitFor({ state: 'detached' });
  await page.goto(server.page('#/organizations/acme'));
  await page.locator('.limits-part').getByText('0 / 7').waitFor();
  await page.locator('.limits-part').getByText('plan gold').waitFor();
  server.setPolicy(POLICY);
  await close(tab);
});
