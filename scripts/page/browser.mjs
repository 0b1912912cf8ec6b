// The browser, and the faults that no test may cause in a page.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

import { chromium } from 'playwright-core';

import { DEADLINE } from './server.mjs';

/** Answers of the server for which a test expects an error in the console. */
const EXPECTED =
  /Failed to load resource.*(401|404|409|ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED_ENCODING|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE)/;

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

let browser = null;

/** Starts the browser before the first page of a file. */
export async function launch() {
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    // In containers the tests run as root, and Chromium's sandbox does not work as root.
    args: process.getuid() === 0 ? ['--no-sandbox'] : [],
  });
}

export async function quit() {
  await browser.close();
}

/** Opens a new page; `faults` collects errors and violations. */
export async function open(url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  context.setDefaultTimeout(DEADLINE);
  const page = await context.newPage();
  const faults = [];
  page.on('pageerror', (error) => faults.push(`thrown: ${error.message}`));
  page.on('console', (message) => {
    const text = message.text();
    if (['error', 'warning'].includes(message.type()) && !EXPECTED.test(text)) faults.push(text);
  });
  await page.addInitScript(() => {
    window.violations = [];
    document.addEventListener('securitypolicyviolation', ({ violatedDirective, blockedURI }) =>
      window.violations.push(`${violatedDirective} ${blockedURI}`),
    );
    window.longest = 0;
    new PerformanceObserver((list) => {
      for (const { duration } of list.getEntries()) window.longest = Math.max(window.longest, duration);
    }).observe({ type: 'longtask', buffered: true });
  });
  await page.goto(url);
  return { page, faults };
}

/** Closes a page, and fails if it has faults or still shows a warning. */
export async function close({ page, faults }) {
  const violations = await page.evaluate(() => window.violations);
  const banners = await page.locator('.banner').allInnerTexts();
  await page.context().close();
  assert.deepEqual([...faults, ...violations, ...banners], []);
}

/** Waits until the page is connected and shows data. */
export async function live(page) {
  await page.locator('#connection[data-kind="live"]').waitFor();
  await page.locator('main[aria-busy="false"]').waitFor();
}

/** The row of an organization in the first view. */
export const rowOf = (page, organization) =>
  page
    .locator('.organizations-part tbody tr')
    .filter({ has: page.getByRole('link', { name: organization, exact: true }) });

/** How long one loop of `slowness` takes on an idle machine, in milliseconds, and how many there are. */
const IDLE_LOOP = 25;
const LOOPS = 5;

/** How many times slower than an idle machine this one is now, by loops in the page. At least 1. */
async function slowness(page) {
  let took = 0;
  for (let n = 0; n < LOOPS; n += 1) took += await page.evaluate(loop);
  return Math.max(1, took / LOOPS / IDLE_LOOP);
}

/** Runs in the page, and returns how long it took. */
function loop() {
  let sum = 0;
  const add = (rounds) => {
    for (let n = 0; n < rounds; n += 1) sum += Math.sqrt(n ^ sum);
  };
  // The browser compiles the loop first.
  add(300_000);
  const start = performance.now();
  add(2_000_000);
  return performance.now() - start;
}

/**
 * Runs `attempt` until nothing in it is late, three times at most, because a busy machine delays one attempt
 * now and then. The attempt gets `judge(page, what, milliseconds, limit)`, and `soon(page, what, shown)` which
 * judges how soon `shown` comes. Each limit is in milliseconds of an idle machine; a slower one gets more.
 */
export async function inTime(attempt) {
  let late;
  const judge = async (page, what, milliseconds, limit) => {
    const allowed = limit * (await slowness(page));
    if (milliseconds > allowed) late.push(`${what}: ${milliseconds | 0} ms and not ${allowed | 0} ms`);
  };
  const soon = async (page, what, shown, limit = 1000) => {
    const start = performance.now();
    await shown;
    await judge(page, what, performance.now() - start, limit);
  };
  for (let tries = 0; tries < 3; tries += 1) {
    late = [];
    await attempt({ judge, soon });
    if (late.length === 0) return;
  }
  assert.fail(late.join('; '));
}

/** Violations of the accessibility rules of axe: contrast, names, roles, tables. */
export async function barriers(page) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => window.axe.run({ resultTypes: ['violations'] }));
  return violations.map(
    ({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 120)).join(' ')}`,
  );
}
