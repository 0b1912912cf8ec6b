// 1,000 organizations and 50,000 sessions.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { close, inTime, launch, live, open, quit, rowOf } from './browser.mjs';
import { Caller, Server } from './server.mjs';

const POLICY = `
[services.t1r]
max_per_organization = 100
ttl = "10m"
`;
const ORGANIZATIONS = 1_000;
const SESSIONS = 50_000;
/** The longest time without a reaction of the page on an idle machine, in milliseconds. */
const LONGEST_TASK = 200;
/** The longest wait for the results of a search, on an idle machine, in milliseconds. */
const LONGEST_SEARCH = 2000;
const LISTED = 50;

const name = (n) => `organization-${String(n).padStart(4, '0')}`;

let server;
let caller;

before(async () => {
  await launch();
  server = await Server.start(POLICY);
  caller = new Caller(server);
  await caller.borrowAll(
    Array.from({ length: SESSIONS }, (_, n) => ({
      organization: name(n % ORGANIZATIONS),
      trace: `trace-${n}`,
    })),
  );
});

after(async () => {
  await quit();
  caller?.close();
  await server?.remove();
});

test('1,000 organizations and 50,000 sessions are listed, searched and sorted without a stall', () =>
  inTime(walkThroughThePage));

async function walkThroughThePage({ judge, soon }) {
  const tab = await open(server.page());
  const { page } = tab;
  await live(page);
  await page.locator('.figure.sessions').getByText('50,000').waitFor();
  const rows = page.locator('.organizations-part tbody tr');
  assert.equal(await rows.count(), LISTED);

  // Sessions change all the time while the operator uses the page.
  let looking = true;
  const churn = borrowAndReturn(() => looking);
  try {
    await useThePage(page, rows, soon);
  } finally {
    looking = false;
    await churn;
  }
  await judge(page, 'a task of the page', await page.evaluate(() => window.longest), LONGEST_TASK);
  await close(tab);
}

async function borrowAndReturn(goesOn) {
  for (let n = 0; goesOn(); n += 1) {
    const { worker_key } = await caller.borrow({
      organization: name(n % ORGANIZATIONS),
      trace: `churn-${n}`,
    });
    await caller.giveBack(worker_key);
  }
}

async function useThePage(page, rows, soon) {
  const search = page.getByRole('searchbox', { name: 'Search organizations' });
  await search.fill('0777');
  await soon(page, 'the organization', rowOf(page, name(777)).waitFor(), LONGEST_SEARCH);
  await page.getByText('1 organization', { exact: true }).waitFor();
  await search.fill('');
  for (const order of ['active', 'refused', 'name']) {
    await page.getByLabel('Sort organizations').selectOption(order);
    await page.waitForURL(new RegExp(`sort=${order}`));
  }
  await rowOf(page, name(0)).waitFor();
  for (let at = 2; at <= 4; at += 1) {
    await page.getByRole('link', { name: 'More →' }).click();
    await page.getByText(`${(at - 1) * LISTED + 1} to ${at * LISTED} of 1,000 organizations`).waitFor();
    assert.equal(await rows.count(), LISTED);
  }
  await rowOf(page, name(150)).getByRole('link').click();
  const leases = page.locator('.leases-part tbody tr');
  await leases.nth(LISTED - 1).waitFor();

  await page.goto(server.page('#/sessions'));
  await page.getByText(/50,\d{3} leases/).waitFor();
  await page.getByRole('link', { name: 'More →' }).click();
  await page.waitForURL(/after=/);
  // The link to the first page shows that the second page has replaced it.
  await page.getByRole('link', { name: '← First' }).waitFor();
  await page.getByLabel('Only with this Trace id').fill('trace-31415');
  await page.keyboard.press('Enter');
  const found = page.getByText('1 lease', { exact: true });
  await soon(page, 'the lease of the trace', found.waitFor(), LONGEST_SEARCH);
  await leases.getByText(name(31415 % ORGANIZATIONS)).waitFor();
}

test('a borrow among 50,000 sessions is shown within a second', async () => {
  const tab = await open(server.page('#/?search=latecomer'));
  await live(tab.page);
  const row = rowOf(tab.page, 'latecomer');
  await inTime(async ({ soon }) => {
    const { worker_key } = await caller.borrow({ organization: 'latecomer' });
    await soon(tab.page, 'the borrow', row.waitFor());
    await caller.giveBack(worker_key);
    await soon(tab.page, 'the return', row.waitFor({ state: 'detached' }));
  });
  await close(tab);
});
