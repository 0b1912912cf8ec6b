// Numbers, times and reasons as text for operators, and safe display of text from callers.

const unsafe = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/gu;

/**
 * Escapes characters that are invisible or change how the text around them is shown, for example as
 * `\u{202e}`.
 */
export const plain = (text) =>
  text.replace(unsafe, (char) => `\\u{${char.codePointAt(0).toString(16)}}`);

const whole = new Intl.NumberFormat('en');
const short = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 });
const byteUnits = ['B', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB'];

/** A number with separators. */
export const count = (number) => whole.format(number);

/** `1 lease`, `2 leases`. */
export const counted = (number, one, many = `${one}s`) =>
  `${count(number)} ${number === 1 ? one : many}`;

/** An amount of a metric; metrics of bytes have units. */
export function amount(metric, value) {
  if (!metric.endsWith('_bytes')) {
    return value < 1e6 ? whole.format(Math.round(value)) : `${short.format(value / 1e6)} M`;
  }
  let unit = 0;
  while (value >= 1000 && unit < byteUnits.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${short.format(value)} ${byteUnits[unit]}`;
}

/** A duration, in at most two units. */
export function duration(seconds) {
  const s = Math.max(0, seconds);
  if (s < 10 && s % 1 !== 0) return `${s.toFixed(1)} s`;
  if (s < 60) return `${Math.floor(s)} s`;
  if (s < 3600) return pair(s, 60, 'min', 1, 's');
  if (s < 86400) return pair(s, 3600, 'h', 60, 'min');
  return pair(s, 86400, 'd', 3600, 'h');
}

function pair(seconds, large, largeUnit, small, smallUnit) {
  const all = Math.floor(seconds / small);
  const first = Math.floor((all * small) / large);
  const second = all - (first * large) / small;
  return second === 0 ? `${first} ${largeUnit}` : `${first} ${largeUnit} ${second} ${smallUnit}`;
}

/** A duration that runs on the page, without fractions of a second. */
export function age(seconds) {
  return duration(Math.floor(Math.max(0, seconds)));
}

/** A time in UTC, with the day unless it is today. */
export function clock(seconds, now = Date.now()) {
  const then = new Date(seconds * 1000);
  const time = `${then.toLocaleTimeString('en-GB', { timeZone: 'UTC' })} UTC`;
  if (then.toISOString().slice(0, 10) === new Date(now).toISOString().slice(0, 10)) return time;
  const day = { day: 'numeric', month: 'short', timeZone: 'UTC' };
  return `${then.toLocaleDateString('en-GB', day)} ${time}`;
}

/** A date and time in UTC. */
export const fullTime = (seconds) =>
  `${new Date(seconds * 1000).toISOString().slice(0, 19).replace('T', ' ')} UTC`;

const sources = {
  override: 'override',
  own: 'own entry in the policy file',
  service: 'entry of the service',
  default: 'entry “default”',
  nothing: 'nothing sets one',
};

/** Where a setting comes from. */
export function source(name, plan) {
  if (name === 'plan') return plan ? `plan ${plan}` : 'plan';
  return sources[name] ?? name;
}

/** A limit as text. */
export function ceiling(max) {
  if (max === null) return 'no limit';
  return max === 0 ? 'nobody' : count(max);
}

/** The texts of the scopes that refuse a borrow. */
export const scopes = {
  service: 'service',
  organization: 'organization',
  api_key: 'API key',
  trace: 'trace',
  budget: 'budget',
  disabled: 'disabled',
};

/** The number of refused borrows in all scopes. */
export const refused = (refusals) => Object.values(refusals).reduce((sum, number) => sum + number, 0);

/** The number of refused borrows by scope: `12 organization, 3 budget`. */
export function byScope(refusals) {
  return Object.entries(scopes)
    .filter(([scope]) => refusals[scope] > 0)
    .map(([scope, words]) => `${count(refusals[scope])} ${words}`)
    .join(', ');
}
