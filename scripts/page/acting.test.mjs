// The operator's actions on the page take effect on the server.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { close, launch, live, open, quit, rowOf } from './browser.mjs';
import { Server, within } from './server.mjs';

const POLICY = `
[services.t1r]
max_per_organization = 2
max_per_api_key = 5
[services.t2w]
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

async function look(hash) {
  const tab = await open(server.page(hash));
  await live(tab.page);
  return tab;
}

const dialog = (page) => page.getByRole('dialog');
const rows = (page) => page.locator('.leases-part tbody tr');

test('a session is revoked by the keyboard, and its holder is told', async () => {
  const held = await server.borrow('revoked', '--trace', 'feed'.repeat(8));
  const tab = await look('#/organizations/revoked');
  const { page } = tab;
  const button = rows(page).getByRole('button', { name: /Revoke… the session of revoked, trace feed/ });
  await button.focus();
  await page.keyboard.press('Enter');
  await dialog(page).getByRole('heading', { name: 'Revoke this session?' }).waitFor();
  assert.match(await dialog(page).innerText(), /organization revoked on t1r/);
  // Enter pressed twice does nothing: the focus is on Cancel.
  await page.keyboard.press('Enter');
  await dialog(page).waitFor({ state: 'detached' });
  assert.ok(await button.evaluate((element) => element === document.activeElement));
  await page.keyboard.press('Enter');
  await page.keyboard.press('Shift+Tab');
  await page.keyboard.type('too many tries');
  await page.keyboard.press('Tab');
  await page.keyboard.press('Tab');
  await page.keyboard.press('Enter');
  assert.equal(await within(held.exited, 'the holder to end'), 3);
  await rows(page).waitFor({ state: 'detached' });
  await page
    .locator('#announcement')
    .getByText(/1 lease ended/)
    .waitFor();
  await page.goto(server.page('#/audit'));
  await page.getByRole('row').filter({ hasText: 'too many tries' }).waitFor();
  await close(tab);
});

test('Escape leaves a session alone and goes back to where one was', async () => {
  const held = await server.borrow('spared');
  const tab = await look('#/organizations/spared');
  const { page } = tab;
  await rows(page).getByRole('button').click();
  await dialog(page).waitFor();
  await page.keyboard.press('Escape');
  await dialog(page).waitFor({ state: 'detached' });
  assert.ok(
    await rows(page)
      .getByRole('button')
      .evaluate((element) => element === document.activeElement),
  );
  assert.equal(await held.release(), 0);
  await close(tab);
});

test('a disabled organization loses its sessions, and may borrow again once it is enabled', async () => {
  const held = await server.borrow('unpaid');
  const tab = await look('#/organizations/unpaid');
  const { page } = tab;
  await page.getByRole('button', { name: 'Disable…' }).click();
  assert.match(await dialog(page).innerText(), /end at once/);
  await dialog(page).getByRole('button', { name: 'Disable' }).click();
  assert.equal(await within(held.exited, 'the holder to end'), 3);
  await page.getByText('Disabled: override').waitFor();
  assert.equal(await server.refused('unpaid'), 3);
  await page.goto(server.page());
  await rowOf(page, 'unpaid').getByText('disabled', { exact: true }).waitFor();
  await page.goBack();
  await page.getByRole('button', { name: 'Enable…' }).click();
  await dialog(page).getByRole('button', { name: 'Enable' }).click();
  await page.getByText('Enabled: override').waitFor();
  assert.equal(await (await server.borrow('unpaid')).release(), 0);
  await page.getByRole('button', { name: 'Clear override…' }).click();
  await dialog(page).getByRole('button', { name: 'Clear' }).click();
  await page.getByText('Enabled', { exact: true }).waitFor();
  await close(tab);
});

test('a limit is set over the policy, applies at once and is cleared again', async () => {
  const held = await server.borrow('raised');
  const tab = await look('#/organizations/raised');
  const { page } = tab;
  const limit = page.locator('.limits-part tbody tr').filter({ hasText: 't1r' });
  await limit.getByText('1 / 2').waitFor();
  await limit.getByText('entry of the service').waitFor();
  await limit.getByRole('button', { name: 'Set limit… on t1r' }).click();
  await page.keyboard.type('1');
  await page.keyboard.press('Enter');
  await limit.getByText('1 / 1').waitFor();
  await limit.getByText('override').waitFor();
  assert.equal(await server.refused('raised'), 3);
  await limit.getByRole('button', { name: 'Clear… the override of the limit on t1r' }).click();
  await dialog(page).getByRole('button', { name: 'Clear' }).click();
  await limit.getByText('1 / 2').waitFor();
  const second = await server.borrow('raised');
  await Promise.all([held.release(), second.release()]);
  await close(tab);
});

test('a limit that the server refuses stays in the dialog with the reason', async () => {
  const held = await server.borrow('mistyped');
  const tab = await look('#/organizations/mistyped');
  const { page } = tab;
  await page.route('**/limits/t1r', (route) =>
    route.continue({ url: server.page('api/organizations/mistyped/limits/nowhere') }),
  );
  await page.getByRole('button', { name: 'Set limit… on t1r' }).click();
  await page.keyboard.type('3');
  await page.keyboard.press('Enter');
  await dialog(page)
    .getByRole('alert')
    .getByText(/nowhere/)
    .waitFor();
  assert.ok(await dialog(page).getByRole('button', { name: 'Set limit' }).isEnabled());
  await page.keyboard.press('Escape');
  await held.release();
  await close(tab);
});

test('a disabled API key ends what was borrowed with it and nothing else', async () => {
  const [gone, stays] = await Promise.all([
    server.borrow('keyed', '--api-key-id', 'key-1'),
    server.borrow('keyed', '--api-key-id', 'key-2'),
  ]);
  const tab = await look('#/organizations/keyed');
  const { page } = tab;
  await page.getByRole('link', { name: 'key-1' }).click();
  await page.getByRole('heading', { name: 'key-1' }).waitFor();
  await page.locator('.limits-part').getByText('entry of the service').waitFor();
  await rows(page).first().waitFor();
  assert.equal(await rows(page).count(), 1);
  await page.getByRole('button', { name: 'Disable…' }).click();
  await dialog(page).getByRole('button', { name: 'Disable' }).click();
  assert.equal(await within(gone.exited, 'the holder to end'), 3);
  await rows(page).waitFor({ state: 'detached' });
  await page.goto(server.page('#/policy'));
  const override = page.getByRole('row').filter({ hasText: 'key-1' });
  await override.getByRole('button').click();
  await dialog(page).getByRole('button', { name: 'Clear' }).click();
  await override.waitFor({ state: 'detached' });
  assert.equal(await stays.release(), 0);
  await close(tab);
});

test('the token is asked for when the server wants it, and is never in the address', async () => {
  const guarded = await Server.start(POLICY, '--admin-token', 'open sesame');
  const tab = await open(guarded.page('#/policy'));
  const { page } = tab;
  const addresses = [];
  page.on('request', (request) => addresses.push(request.url()));
  await page.getByLabel('Token', { exact: true }).fill('wrong');
  await page.keyboard.press('Enter');
  await dialog(page).getByText('refused').waitFor();
  await page.getByLabel('Token', { exact: true }).fill('open sesame');
  await page.keyboard.press('Enter');
  await live(page);
  await page.getByRole('heading', { name: 'Policy' }).waitFor();
  await page.reload();
  await live(page);
  assert.equal(await dialog(page).count(), 0, 'the token is kept while the tab is open');
  assert.ok(addresses.length > 0 && addresses.every((address) => !address.includes('sesame')));
  await close(tab);
  await guarded.remove();
});
