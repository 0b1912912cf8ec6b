// The page of a server in a fleet: who leads, what an operator should look at, and handing over.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { barriers, close, launch, live, open, quit } from './browser.mjs';
import { Database } from './database.mjs';
import { Server } from './server.mjs';

const POLICY = '[services.t1r]\n';

let database;
const servers = [];

before(async () => {
  await launch();
  database = await Database.start();
});

after(async () => {
  await quit();
  for (const server of servers) await server.remove();
  await database?.remove();
});

async function startOne(policy) {
  const server = await Server.start(policy, '--store', database.url, '--leader-ttl', '1s');
  servers.push(server);
  return server;
}

const rows = (page) => page.getByRole('table', { name: 'Servers' }).locator('tbody tr');

test('a fleet is shown, warns of different policies, and is handed over', async () => {
  const first = await startOne(POLICY);
  const tab = await open(first.page('#/fleet'));
  const { page } = tab;
  await page.getByText(`${first.grpc} leads in term 1.`).waitFor();
  await page.getByRole('listitem').getByText('no other server could take over').waitFor();

  const second = await startOne(`${POLICY}max_total = 7\n`);
  await rows(page).nth(1).waitFor();
  const standby = rows(page).filter({ hasText: second.grpc });
  await standby.getByText('standby').waitFor();
  await rows(page).filter({ hasText: first.grpc }).getByText('answers here').waitFor();
  await page.getByRole('listitem').getByText('the servers have different policies').waitFor();
  await page.getByRole('link', { name: 'Fleet' }).waitFor();
  assert.deepEqual(await barriers(page), []);

  const warnings = page.locator('.warnings li');
  second.setPolicy(POLICY);
  await warnings.waitFor({ state: 'detached' });
  await page.getByRole('button', { name: 'Hand over…' }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Hand over' }).click();
  await page.getByText(`${second.grpc} leads in term 2.`).waitFor();
  await page.locator('.banner[data-kind="fleet"]').waitFor({ state: 'detached' });
  await page.context().close();
});

test('a server alone shows no fleet', async () => {
  const server = await Server.start(POLICY);
  servers.push(server);
  const tab = await open(server.page('#/fleet'));
  await live(tab.page);
  await tab.page.getByText('there is no fleet').waitFor();
  assert.equal(await tab.page.getByRole('link', { name: 'Fleet' }).count(), 0);
  await close(tab);
});
