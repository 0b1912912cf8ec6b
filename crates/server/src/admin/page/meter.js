// Bars and lines, drawn as SVG, because the page's security policy forbids inline styles.

import { element, setAttribute, setText, svgElement } from './dom.js';
import { count } from './words.js';

/** A bar with this share or more shows a warning colour. */
const WARNING_SHARE = 0.8;

function level(share) {
  if (share >= 1) return 'full';
  return share >= WARNING_SHARE ? 'nearly' : 'calm';
}

/** A bar without text. It is decoration next to a number. */
export function bar() {
  const fill = svgElement('rect', { class: 'fill', height: 6, rx: 0 });
  const track = svgElement('rect', { class: 'track', width: 100, height: 6 });
  const root = svgElement(
    'svg',
    { class: 'bar', viewBox: '0 0 100 6', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
    track,
    fill,
  );
  return {
    root,
    /** `share` is between 0 and 1; `null` means that there is no limit. */
    update(share) {
      setAttribute(root, 'data-level', share === null ? 'endless' : level(share));
      setAttribute(fill, 'width', share === null ? 0 : Math.min(100, Math.max(0, share * 100)).toFixed(1));
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
      setText(number, max === null ? `${count(active)} · no limit` : `${count(active)} / ${count(max)}`);
      setAttribute(root, 'data-level', share === null ? 'endless' : level(share));
      line.update(share);
    },
  };
}

/** A small line chart of the latest values of a number. */
export function sparkline(points) {
  // One value makes no line, and a single dot would be confusing.
  const line = svgElement('polyline', { class: 'line' });
  const root = svgElement(
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
      setAttribute(
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
