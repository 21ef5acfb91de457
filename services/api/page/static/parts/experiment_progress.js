// How far an experiment has come, from its runs.
// @ts-check
import { percent } from '../format.js';

const ENDED = ['succeeded', 'failed'];

/** @typedef {{name: string, tuning: [number, number], final: [number, number], newest: number | null, newestPhase: string, chosen: Record<string, any> | null, isBaseline: boolean}} Method */

/** The name of the method that the others are compared with. @param {any} experiment */
export function baselineOf(experiment) {
  return experiment.file.baseline ?? Object.keys(experiment.file.methods)[0];
}

/**
 * @param {any} experiment
 * @returns {{ended: number, running: number, total: number}}
 */
export function progressOf({ runs, num_runs }) {
  return {
    ended: runs.filter((/** @type {any} */ run) => ENDED.includes(run.state)).length,
    running: runs.filter((/** @type {any} */ run) => ['starting', 'running', 'stopping'].includes(run.state)).length,
    total: num_runs,
  };
}

/** Each method with its ended runs by phase, newest accuracy and choice. @param {any} experiment @returns {Method[]} */
export function methodsOf(experiment) {
  const baseline = baselineOf(experiment);
  return Object.keys(experiment.file.methods).map((name) => {
    const own = experiment.runs.filter((/** @type {any} */ run) => run.method === name);
    const [tuning, final] = ['tuning', 'final'].map((phase) =>
      own.filter((/** @type {any} */ run) => run.phase === phase),
    );
    const numFinal = experiment.file.final.seeds.length; // they are listed once settings are chosen
    const shown = final.length ? final : tuning;
    const known = shown.map((/** @type {any} */ run) => run.accuracy).filter(Number.isFinite);
    const mean = known.reduce((/** @type {number} */ a, /** @type {number} */ b) => a + b, 0) / known.length;
    return {
      name,
      tuning: [ended(tuning), tuning.length],
      final: [ended(final), numFinal],
      newest: known.length ? mean : null,
      newestPhase: final.length ? 'final' : 'tuning',
      chosen: experiment.chosen?.[name] ?? null,
      isBaseline: name === baseline,
    };
  });
}

/** @param {any[]} runs */
function ended(runs) {
  return runs.filter((run) => ENDED.includes(run.state)).length;
}

/** @param {Method} method */
export function newestText({ newest }) {
  return percent(newest);
}

/** A grid point in words. @param {Record<string, any> | null} values by field */
export function valuesText(values) {
  return Object.entries(values ?? {})
    .map(([field, value]) => `${field.split('.').at(-1)} ${typeof value === 'object' ? JSON.stringify(value) : value}`)
    .join(', ');
}
