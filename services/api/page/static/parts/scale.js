// How charts are drawn by choice: smoothed, on a logarithmic axis. The choice is part of the address.
// @ts-check
import { choice, h } from '../dom.js';

/** @typedef {{window: number, log: boolean}} Scale `window`: number of values in a mean */

const WINDOWS = /** @type {[string, string][]} */ ([
  ['1', 'none'],
  ['5', 'mean of 5 steps'],
  ['20', 'mean of 20 steps'],
]);

/** @param {URLSearchParams} query @returns {Scale} */
export function scaleOf(query) {
  const window = query.get('mean') ?? '1';
  return { window: WINDOWS.some(([value]) => value === window) ? Number(window) : 1, log: query.get('log') === '1' };
}

/** What an address says of a scale; nothing if it is as usual. @param {Scale} scale @returns {Record<string, string>} */
export function scaleQuery({ window, log }) {
  return { ...(window === 1 ? {} : { mean: String(window) }), ...(log ? { log: '1' } : {}) };
}

/** Controls that change `scale`. @param {Scale} scale @param {() => void} onchanged */
export function scaleControls(scale, onchanged) {
  const log = h('input', {
    type: 'checkbox',
    checked: scale.log,
    onchange: (/** @type {any} */ event) => {
      scale.log = event.target.checked;
      onchanged();
    },
  });
  return [
    choice('Smoothing', WINDOWS, String(scale.window), (value) => {
      scale.window = Number(value);
      onchanged();
    }),
    h('label', { class: 'check scale' }, log, 'Logarithmic axis'),
  ];
}

/** Mean of the last `window` values. @param {(number | null)[]} values @param {number} window */
export function smooth(values, window) {
  if (window <= 1) return values;
  return values.map((_, i) => {
    const part = values.slice(Math.max(0, i - window + 1), i + 1).filter((value) => value !== null);
    return part.length ? part.reduce((sum, value) => sum + value, 0) / part.length : null;
  });
}
