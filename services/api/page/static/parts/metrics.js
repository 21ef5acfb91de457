// The catalogue of step metrics: services/contracts/step_metrics.py, as the API embeds it in the page.
// @ts-check
import { duration, fixed, percent, withUnit } from '../format.js';

/** @typedef {{name: string, title: string, unit: string}} Metric */
/** @typedef {{metric: string, label: string, color: number, dash: string, kind: 'line' | 'area' | 'bar', right: boolean, only_if: string}} Line */
/** @typedef {{title: string, caption: string, unit: string, from_zero: boolean, empty: string, with_evaluations: boolean, rest_of: string, lines: Line[]}} ChartRecord */

/** @type {{metrics: Metric[], charts: ChartRecord[]}} */
const catalogue = JSON.parse(document.getElementById('step-metrics')?.textContent ?? '');

export const METRICS = new Map(catalogue.metrics.map((metric) => [metric.name, metric]));
export const CHARTS = catalogue.charts;

/**
 * A metric's value with its unit, formatted for display.
 * @param {string} name
 * @param {Record<string, number>} values of one step
 */
export function metricText(name, values) {
  const unit = METRICS.get(name)?.unit ?? '';
  if (unit === 'share') return percent(values[name]);
  if (unit === 'seconds') return duration(values[name]);
  return unit ? withUnit(values[name], unit) : fixed(values[name]);
}
