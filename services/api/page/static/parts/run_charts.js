// The charts of one run, as the catalogue of step metrics describes them.
// @ts-check
import { Chart } from './chart.js';
import { CHARTS, METRICS, metricText } from './metrics.js';

/** @typedef {{step: number, at: number, metrics: Record<string, number>}} Step */
/** @typedef {{step: number, at: number, split: string, num_samples: number, accuracy: number, pass_at_k: number}} Evaluation */
/** @typedef {import('./chart.js').Series} Series */
const KINDS = /** @type {const} */ ({ line: 'lines', area: 'area', bar: 'bars' });

/** @typedef {{chart: Chart, series: (steps: Step[], evaluations: Evaluation[]) => Series[], summary: (last: Record<string, number>) => string}} Panel */

/**
 * One metric over the steps; a gap where a 0 would only mean that it has no value.
 * @param {Step[]} steps
 * @param {import('./metrics.js').Line} line
 * @returns {Series}
 */
function seriesOf(steps, { metric, label, color, dash, kind, right, only_if }) {
  return {
    name: label,
    x: steps.map((s) => s.step),
    y: steps.map((s) => (only_if && !s.metrics[only_if] ? null : (s.metrics[metric] ?? null))),
    color,
    dash,
    kind: KINDS[kind],
    right,
    unit: METRICS.get(metric)?.unit,
  };
}

/**
 * What a chart's bands leave of the whole.
 * @param {Step[]} steps
 * @param {import('./metrics.js').ChartRecord} chart
 * @returns {Series}
 */
function rest(steps, { rest_of, lines }) {
  const known = (/** @type {Step} */ s) => lines.reduce((sum, { metric }) => sum + (s.metrics[metric] ?? 0), 0);
  return {
    name: 'other',
    x: steps.map((s) => s.step),
    y: steps.map((s) => Math.max(0, (s.metrics[rest_of] ?? 0) - known(s))),
    kind: 'bars',
    color: 7,
  };
}

/** @param {Evaluation[]} evaluations @returns {Series[]} */
function evaluated(evaluations) {
  const splits = [...new Set(evaluations.map((e) => `${e.split}\n${e.num_samples}`))];
  return splits.flatMap((key, i) => {
    const rows = evaluations.filter((e) => `${e.split}\n${e.num_samples}` === key).sort((a, b) => a.step - b.step);
    const [split, k] = key.split('\n');
    const x = rows.map((e) => e.step);
    return [
      { name: `avg@${k} ${split}`, x, y: rows.map((e) => e.accuracy), kind: 'points', color: 2 + 2 * i, width: 2.2 },
      {
        name: `pass@${k} ${split}`,
        x,
        y: rows.map((e) => e.pass_at_k),
        kind: 'points',
        symbol: 'diamond',
        dash: 'dot',
        color: 3 + 2 * i,
      },
    ];
  });
}

/** More points than this cannot be distinguished, and make a long run's charts slow. */
const MOST_POINTS = 600;

/**
 * Steps as they are drawn: a long run's in equal spans, each with its means (of `_max` the maximum).
 * @param {Step[]} steps in order
 * @returns {{points: Step[], width: number}} `width`: steps per point
 */
export function thinned(steps) {
  const width = Math.ceil(steps.length / MOST_POINTS);
  if (width <= 1) return { points: steps, width: 1 };
  const points = [];
  for (let start = 0; start < steps.length; start += width) points.push(summed(steps.slice(start, start + width)));
  return { points, width };
}

/** @param {Step[]} part @returns {Step} */
function summed(part) {
  const last = part[part.length - 1];
  /** @type {Record<string, number>} */
  const metrics = {};
  for (const name of new Set(part.flatMap((step) => Object.keys(step.metrics)))) {
    const values = part.map((step) => step.metrics[name]).filter(Number.isFinite);
    metrics[name] = name.endsWith('_max') ? Math.max(...values) : values.reduce((a, b) => a + b, 0) / values.length;
  }
  return { ...last, metrics };
}

/** @returns {Panel[]} */
export function makePanels() {
  return CHARTS.map((record) => ({
    chart: new Chart(record.title, record.caption, {
      unit: record.unit,
      zero: record.from_zero,
      stacked: record.lines.some((line) => line.kind !== 'line'),
      rightUnit: METRICS.get(record.lines.find((line) => line.right)?.metric ?? '')?.unit,
      empty: record.empty,
    }),
    series: (steps, evaluations) => [
      ...record.lines.map((line) => seriesOf(steps, line)),
      ...(record.rest_of ? [rest(steps, record)] : []),
      ...(record.with_evaluations ? evaluated(evaluations) : []),
    ],
    summary: (last) => record.lines.map(({ metric, label }) => `${label} ${metricText(metric, last)}`).join(', '),
  }));
}
