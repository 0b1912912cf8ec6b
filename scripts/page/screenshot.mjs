// Takes the picture for the README: realistic data on a real server.

import { launch, live, open, quit } from './browser.mjs';
import { Caller, Server } from './server.mjs';

const POLICY = `
[services.t1r]
max_per_organization = 5
max_per_api_key = 40
max_total = 400
ttl = "10m"
[services.t2w]
max_per_organization = 50
ttl = "10m"
[plans.free]
limits = { t1r = 2, t2w = 10 }
budgets = { egress_bytes = { amount = 50e9, per = "month" } }
[plans.pro]
limits = { t1r = 20, t2w = 100 }
budgets = { egress_bytes = { amount = 2e12, per = "month" } }
[plans.scale]
limits = { t1r = 40, t2w = 300 }
budgets = { egress_bytes = { amount = 20e12, per = "month" }, processed_blocks = { amount = 40e6, per = "day" } }
[organizations]
pinax = { plan = "scale" }
aurora-labs = { plan = "scale" }
quickindex = { plan = "pro" }
northwind = { plan = "pro" }
tidewater = { plan = "pro" }
blockscope = { plan = "pro" }
lantern = { plan = "free" }
sandbox-17 = { plan = "free" }
`;

/** Organization, sessions, workers, gigabytes, million blocks, borrows beyond the limit. */
const EVENING = [
  ['pinax', 31, 244, 11_800, 23.1, 0],
  ['aurora-labs', 17, 131, 6_240, 8.4, 0],
  ['quickindex', 20, 62, 1_370, 0, 23],
  ['northwind', 7, 55, 1_910, 0, 0],
  ['tidewater', 11, 38, 420, 0, 0],
  ['blockscope', 3, 12, 96, 0, 0],
  ['lantern', 2, 4, 31, 0, 4],
  ['sandbox-17', 1, 8, 44, 0, 0],
  ['fieldnotes', 3, 21, 0, 0, 0],
];

const [file] = process.argv.slice(2);
const server = await Server.start(POLICY);
const caller = new Caller(server);
for (const [at, [organization, sessions, workers, gigabytes, blocks]] of EVENING.entries()) {
  const trace = (n) => `${at}${n}`.padStart(4, '0').padEnd(32, 'c0ffee');
  await caller.borrowAll(
    Array.from({ length: sessions }, (_, n) => ({
      organization,
      api_key: `${organization}-main`,
      trace: trace(n),
    })),
  );
  await caller.borrowAll(
    Array.from({ length: workers }, (_, n) => ({
      organization,
      service: 't2w',
      trace: trace(n % sessions),
      workers: 300,
    })),
  );
  if (gigabytes > 0) await caller.report(organization, 'egress_bytes', gigabytes * 1e9);
  if (blocks > 0) await caller.report(organization, 'processed_blocks', blocks * 1e6);
}
for (const [organization, , , , , late] of EVENING) {
  for (let n = 0; n < late; n += 1) await caller.borrow({ organization, trace: `late-${n}` });
}
// An organization with a spent budget that holds nothing, and actions of an operator.
await caller.report('sandbox-17', 'egress_bytes', 7e9);
await caller.borrow({ organization: 'sandbox-17' }).catch(() => {});
// Clients with our library, each with a stream of keep-alives.
const attached = await Promise.all(
  ['tidewater', 'fieldnotes', 'aurora-labs'].map((one) => server.borrow(one)),
);
const acted = await fetch(server.page('api/organizations/tidewater/limits/t1r'), {
  method: 'PUT',
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify({ max: 15, note: 'asked for more until Friday' }),
});
if (!acted.ok) throw new Error(`the limit was refused: ${await acted.text()}`);

await launch();
const { page } = await open(server.page(), {
  viewport: { width: 1280, height: 840 },
  colorScheme: 'light',
});
await live(page);
await page.locator('.feed li').first().waitFor();
await page.screenshot({ path: file });
await quit();
await Promise.all(attached.map((one) => one.release()));
caller.close();
await server.remove();
