// What an experiment's final runs have shown: tables, learning curves, differences, claims.
// @ts-check
import { h, spoken, table } from '../dom.js';
import { fixed, short } from '../format.js';
import { Chart, DASHES, SYMBOLS } from './chart.js';
import { valuesText } from './experiment_progress.js';
import { METRICS } from './metrics.js';

/** @typedef {{mean: number | null, low: number | null, high: number | null, values: (number | null)[]}} Estimate */
/** @typedef {(value: number) => string} Format */

const FIFTHS = ['1st fifth', '2nd', '3rd', '4th', '5th'];
const MARKS = /** @type {Record<string, string>} */ ({ shown: '✓', opposite: '✕', 'not shown': '○', 'no data': '–' });

/** @type {Format} */
const percents = (value) => fixed(100 * value, 1);
/** @type {Format} */
const points = (value) => (value > 0 ? '+' : '') + fixed(100 * value, 1);
/** @param {number} digits @returns {Format} */
const numbers = (digits) => (value) => fixed(value, digits);

/** A mean and, below it, its interval. @param {Estimate} estimate @param {Format} format */
function estimate({ mean, low, high }, format) {
  if (mean === null) return '–';
  if (low === null || high === null) return format(mean);
  return [format(mean), ' ', h('span', { class: 'interval' }, `[${format(low)}, ${format(high)}]`)];
}

/**
 * @param {string} title
 * @param {string} text
 * @param {...any} content
 */
function section(title, text, ...content) {
  return h(
    'section',
    { class: 'card part', 'aria-label': title },
    h('h2', {}, title),
    text ? h('p', { class: 'muted' }, text) : null,
    content,
  );
}

/** @param {string[]} columns all but the first have numbers @param {any[][]} rows @param {string} label */
function numeric(label, columns, rows) {
  return table(
    label,
    columns,
    rows,
    columns.map((_, i) => i).filter((i) => i > 0),
  );
}

/** @param {any} experiment @param {any} results */
export function resultsTable(experiment, results) {
  const [first] = results.methods;
  const budgets = [
    ...Object.keys(first.within_steps).map((steps) => `${steps} steps`),
    ...Object.keys(first.within_seconds).map((seconds) => `${seconds} s`),
  ];
  const rows = results.methods.map((/** @type {any} */ item) => [
    item.method,
    estimate(item.before, percents),
    ...[...Object.values(item.within_steps), ...Object.values(item.within_seconds)].map((one) =>
      estimate(one, percents),
    ),
    h('strong', {}, estimate(item.score, percents)),
    estimate(item.seconds_per_step, numbers(2)),
    `${item.num_collapsed} of ${results.seeds.length - item.num_missing}`,
    item.num_missing,
  ]);
  return section(
    'Results',
    `avg@k in percent: mean [95% interval over seeds], final seeds ${results.seeds.join(', ')}. Columns of budgets give ` +
      `the best evaluation within them; the score is the mean of the last ${experiment.file.last_evaluations ?? 3} ` +
      'evaluations. Seconds are those of training, without evaluations.',
    numeric('Results', ['Method', 'Before', ...budgets, 'Score', 'Seconds per step', 'Collapsed', 'Missing'], rows),
  );
}

/** @param {any} results */
export function differencesTable(results) {
  const others = results.methods.filter((/** @type {any} */ item) => item.difference);
  if (!others.length) return null;
  return section(
    'Differences',
    `Score minus that of ${results.baseline} with the same seed, in points: mean [95% interval over seeds].`,
    numeric(
      'Differences',
      ['Method', 'Difference', 'Seeds ahead', ...results.seeds.map((/** @type {number} */ seed) => `Seed ${seed}`)],
      others.map((/** @type {any} */ item) => [
        item.method,
        estimate(item.difference, points),
        `${item.num_ahead} of ${item.difference.values.filter((/** @type {number | null} */ value) => value !== null).length}`,
        ...item.difference.values.map((/** @type {number | null} */ value) => (value === null ? '–' : points(value))),
      ]),
    ),
  );
}

/** @param {any} results */
export function claimsTable(results) {
  if (!results.claims.length) return null;
  return section(
    'Claims',
    'Each claim is that the first quantity is higher than the second. It is shown if the 95% interval of the paired ' +
      'difference is above 0, opposite if it is below 0, and not shown if it contains 0.',
    table(
      'Claims',
      ['Claim', 'Verdict', 'Higher', 'Lower', 'Difference'],
      results.claims.map((/** @type {any} */ { claim, verdict, higher, lower, difference }) => [
        h('span', { class: 'claim' }, claim),
        h(
          'span',
          { class: 'badge', dataset: { verdict } },
          h('span', { 'aria-hidden': 'true' }, MARKS[verdict]),
          ' ',
          verdict,
        ),
        ...[higher, lower, difference].map((one) => estimate(one, numbers(3))),
      ]),
      [2, 3, 4],
    ),
  );
}

/** @param {any} results */
export function windowsTable(results) {
  const rows = Object.keys(results.methods[0].windows).flatMap((name) =>
    results.methods
      .filter((/** @type {any} */ item) => item.windows[name].some(Boolean)) // GRPO has no teacher
      .map((/** @type {any} */ item) => [
        METRICS.get(name)?.title ?? name,
        item.method,
        ...item.windows[name].map((/** @type {number | null} */ value) => short(value)),
      ]),
  );
  if (!rows.length) return null;
  return section(
    'Over time',
    'Means over all seeds in each fifth of the training steps.',
    table('Over time', ['Metric', 'Method', ...FIFTHS], rows, [2, 3, 4, 5, 6]),
  );
}

/** Scores of the tuning runs once they have all ended. @param {any} experiment */
export function tuningTable({ scores, runs, chosen }) {
  const tuning = runs.filter((/** @type {any} */ run) => run.phase === 'tuning');
  if (!scores || !tuning.length) return null;
  const rows = Object.entries(scores).flatMap(([method, byPoint]) =>
    byPoint.map((/** @type {number[]} */ bySeed, /** @type {number} */ point) => {
      const own = tuning.find(
        (/** @type {any} */ run) => run.method === method && run.cell.split('/')[2] === String(point),
      );
      const isChosen = JSON.stringify(chosen?.[method]) === JSON.stringify(own?.values);
      return [
        method,
        valuesText(own?.values),
        percents(bySeed.reduce((a, b) => a + b, 0) / bySeed.length),
        bySeed.map(percents).join(', '),
        isChosen ? h('strong', {}, '✓ chosen') : '',
      ];
    }),
  );
  return section(
    'Tuning',
    'Mean score over the tuning seeds on the tuning questions. The choice was stored before the first final run started.',
    table('Tuning', ['Method', 'Settings', 'Score', 'By seed', spoken('Chosen')], rows, [2]),
  );
}

/** Learning curves: accuracy by steps, and by seconds. */
export class Curves {
  constructor() {
    const caption = 'Line: mean over seeds. Band: from the lowest to the highest seed.';
    this.charts = [
      new Chart('Accuracy by steps', caption, { unit: 'share', zero: false }),
      new Chart('Accuracy by seconds', caption, { unit: 'share', zero: false, xTitle: 'seconds of training' }),
    ];
    this.elements = this.charts.map((chart) => chart.element);
  }

  /** @param {any} results */
  draw(results) {
    const summary = results.methods.map((/** @type {any} */ { method, curve }) => {
      const last = curve.at(-1);
      return last ? `${method} ${percents(last.mean)}% after step ${last.step}` : `${method}: none`;
    });
    this.charts.forEach((chart, i) => {
      chart.draw(results.methods.map(curveOf(i === 0 ? 'step' : 'seconds')), summary.join(', '));
    });
  }

  close() {
    for (const chart of this.charts) chart.close();
  }
}

/** @param {'step' | 'seconds'} by @returns {(method: any, index: number) => import('./chart.js').Series} */
function curveOf(by) {
  return ({ method, curve }, index) => {
    const values = (/** @type {string} */ name) => curve.map((/** @type {any} */ point) => point[name]);
    return {
      name: method,
      x: values(by),
      y: values('mean'),
      low: values('low'),
      high: values('high'),
      kind: 'points',
      color: index,
      dash: DASHES[index % DASHES.length],
      symbol: SYMBOLS[index % SYMBOLS.length],
    };
  };
}
