// Where in a response a quantity is high: its mean by tenth of the response, as bars drawn in SVG.
// @ts-check
import { h } from '../dom.js';
import { fixed } from '../format.js';

const [BINS, WIDTH, HEIGHT] = [10, 120, 36];

/**
 * Means over the tokens of all responses that have the quantity, from the first tenth of a response to its last.
 * @param {any[]} samples
 * @param {import('./tokens.js').Quantity} quantity
 * @returns {number[]} empty if no response has it
 */
export function meansByPosition(samples, quantity) {
  const [sums, counts] = [Array(BINS).fill(0), Array(BINS).fill(0)];
  for (const sample of samples) {
    const values = quantity.values(sample);
    values.forEach((value, i) => {
      const bin = Math.floor((BINS * i) / values.length);
      sums[bin] += value;
      counts[bin] += 1;
    });
  }
  if (!counts.some(Boolean)) return [];
  return sums.map((sum, bin) => (counts[bin] ? sum / counts[bin] : 0));
}

/**
 * @param {string} label Whose responses these are.
 * @param {any[]} samples
 * @param {import('./tokens.js').Quantity} quantity
 * @returns {HTMLElement | null} null if no response has the quantity
 */
export function positions(label, samples, quantity) {
  const means = meansByPosition(samples, quantity);
  if (!means.length) return null;
  const most = Math.max(...means.map(Math.abs)) || 1;
  const named = (/** @type {number} */ bin) => `${10 * bin} to ${10 * bin + 10}%`;
  const top = means.reduce((best, value, bin) => (Math.abs(value) > Math.abs(means[best]) ? bin : best), 0);
  const text = `${quantity.label} by position, ${label}: highest at ${named(top)} of the response, ${fixed(means[top])} ${quantity.unit}`;
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('viewBox', `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute('preserveAspectRatio', 'none');
  means.forEach((value, bin) => {
    const height = Math.max(1, (HEIGHT * Math.abs(value)) / most);
    const bar = document.createElementNS('http://www.w3.org/2000/svg', 'rect');
    const step = WIDTH / BINS;
    for (const [name, size] of Object.entries({ x: bin * step, y: HEIGHT - height, width: step - 2, height }))
      bar.setAttribute(name, size.toFixed(2));
    const title = document.createElementNS('http://www.w3.org/2000/svg', 'title');
    title.textContent = `${named(bin)} of the response: ${fixed(value)} ${quantity.unit}`.trim();
    bar.append(title);
    svg.append(bar);
  });
  const picture = h('div', { class: 'positions', role: 'img', 'aria-label': text.trim() });
  picture.append(svg);
  return h(
    'figure',
    { class: 'by-position' },
    picture,
    h('figcaption', { class: 'muted' }, `Mean from a response’s start to its end: ${label}`),
  );
}
