// The browser, and what a page must never do whatever is tested.

import assert from 'node:assert/strict';

import { chromium } from 'playwright-core';

import { DEADLINE } from './server.mjs';

/** Answers of the server that a test expects the browser to complain about. */
const EXPECTED =
  /Failed to load resource.*(401|404|409|ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED_ENCODING|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE)/;

let browser = null;

/** Starts the browser before the first page of a file. */
export async function launch() {
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    // Tests run as root in containers, where Chromium's own sandbox cannot.
    args: process.getuid() === 0 ? ['--no-sandbox'] : [],
  });
}

export async function quit() {
  await browser.close();
}

/** Opens a page of its own; `faults` gathers what it must not do. */
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

/** Closes a page that must have behaved. */
export async function close({ page, faults }) {
  const violations = await page.evaluate(() => window.violations);
  await page.context().close();
  assert.deepEqual([...faults, ...violations], []);
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

/** What in the page is too faint to read: text under a contrast of 4.5 to 1 with what is behind it. */
export function faint(page) {
  return page.evaluate(() => {
    const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const parse = (color) => {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = color;
      canvas.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
      return { rgb: [r, g, b], alpha: a / 255 };
    };
    const luminance = (rgb) => {
      const [r, g, b] = rgb.map((v) =>
        v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4,
      );
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
      for (let at = element; at; at = at.parentElement) {
        const { rgb, alpha } = parse(getComputedStyle(at).backgroundColor);
        if (alpha === 1) return rgb;
      }
      return [255, 255, 255];
    };
    const found = new Set();
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const element = texts.currentNode.parentElement;
      if (!texts.currentNode.textContent.trim() || !element.checkVisibility()) continue;
      if (['SCRIPT', 'NOSCRIPT', 'OPTION'].includes(element.tagName)) continue;
      const [one, two] = [parse(getComputedStyle(element).color).rgb, behind(element)].map(luminance);
      const contrast = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
      if (contrast < 4.5)
        found.add(
          `${contrast.toFixed(1)}: ${element.className || element.tagName} ${texts.currentNode.textContent.trim().slice(0, 40)}`,
        );
    }
    return [...found];
  });
}
