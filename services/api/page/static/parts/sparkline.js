// A small line chart without axes, drawn as SVG: a list of runs should not wait for plotly.js.
// @ts-check
import { fill, h } from '../dom.js';

const [WIDTH, HEIGHT, MARGIN] = [100, 38, 4];

export class Sparkline {
  /** @param {string} label */
  constructor(label) {
    this.element = h('div', { class: 'spark', role: 'img', 'aria-label': `${label}: no data yet`, hidden: true });
    this.label = label;
    /** @type {number[]} */
    this.values = [];
  }

  /** @param {number[]} values */
  draw(values) {
    if (!values.length || (values.length === this.values.length && values.at(-1) === this.values.at(-1))) return;
    this.values = values;
    const last = /** @type {number} */ (values.at(-1));
    this.element.setAttribute(
      'aria-label',
      `${this.label}: from ${values[0].toFixed(3)} to ${last.toFixed(3)} in ${values.length} steps`,
    );
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const points = values.map((value, i) => [
      (WIDTH * i) / Math.max(1, values.length - 1),
      HEIGHT - MARGIN - ((HEIGHT - 2 * MARGIN) * (value - low)) / (high - low || 1),
    ]);
    const line = path(`M${points.map(([x, y]) => `${x.toFixed(2)},${y.toFixed(2)}`).join('L')}`);
    const [x, y] = points[points.length - 1];
    const end = path(`M${x},${y}h0.01`); // a line with a round cap is a dot, whatever the box's shape
    end.classList.add('end');
    const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
    svg.setAttribute('viewBox', `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute('preserveAspectRatio', 'none');
    svg.append(line, end);
    fill(this.element, svg);
    this.element.hidden = false;
  }
}

/** @param {string} d */
function path(d) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  made.setAttribute('d', d);
  made.setAttribute('vector-effect', 'non-scaling-stroke');
  return made;
}
