// Bars and lines, drawn as SVG: the page sets no inline style, which its security policy forbids.

import { drawing, element, mark, say } from './dom.js';
import { count } from './words.js';

/** From this share on a bar warns. */
const NEARLY = 0.8;

function level(share) {
  if (share >= 1) return 'full';
  return share >= NEARLY ? 'nearly' : 'calm';
}

/** A bar alone; decoration beside a number in text. */
export function bar() {
  const fill = drawing('rect', { class: 'fill', height: 6, rx: 0 });
  const track = drawing('rect', { class: 'track', width: 100, height: 6 });
  const root = drawing(
    'svg',
    { class: 'bar', viewBox: '0 0 100 6', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
    track,
    fill,
  );
  return {
    root,
    /** `share` is of 1; `null` is a bar without an end. */
    update(share) {
      mark(root, 'data-level', share === null ? 'endless' : level(share));
      mark(fill, 'width', share === null ? 0 : Math.min(100, Math.max(0, share * 100)).toFixed(1));
    },
  };
}

/** A label, `active / max` in text, and a bar. */
export function meter(name) {
  const label = element('span', { class: 'label' }, element('bdi', {}, name));
  const number = element('span', { class: 'number' });
  const line = bar();
  const root = element('div', { class: 'meter' }, label, number, line.root);
  return {
    root,
    update({ active, max }) {
      const share = max === null ? null : max === 0 ? 1 : active / max;
      say(number, max === null ? `${count(active)} · no limit` : `${count(active)} / ${count(max)}`);
      mark(root, 'data-level', share === null ? 'endless' : level(share));
      line.update(share);
    },
  };
}

/** A small line of the latest values of a number. */
export function sparkline(points) {
  // Without two values there is no line, and a dot would look like dirt.
  const line = drawing('polyline', { class: 'line' });
  const root = drawing(
    'svg',
    { class: 'spark', viewBox: '0 0 100 24', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
    line,
  );
  const values = [];
  return {
    root,
    add(value) {
      values.push(value);
      if (values.length > points) values.shift();
      const low = Math.min(...values);
      const span = Math.max(...values) - low || 1;
      const step = 100 / (points - 1);
      const start = points - values.length;
      mark(
        line,
        'points',
        values.length < 2
          ? ''
          : values
              .map(
                (v, at) =>
                  `${((start + at) * step).toFixed(1)},${(22 - ((v - low) / span) * 20).toFixed(1)}`,
              )
              .join(' '),
      );
    },
  };
}
