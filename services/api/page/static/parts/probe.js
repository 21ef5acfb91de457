// What a probe found: its advice and its numbers.
// @ts-check
import { call, Problem } from '../api.js';
import { fill, h, table } from '../dom.js';
import { duration, fixed, percent } from '../format.js';

/**
 * Show the report of a probe run, or that it has none yet.
 * @param {Element} box
 * @param {any} run
 * @param {AbortSignal} signal
 */
export async function showProbe(box, run, signal) {
  try {
    const probe = await call(`/v1/probes/${encodeURIComponent(run.id)}`, { signal });
    if (!signal.aborted) fill(box, report(probe));
  } catch (error) {
    if (!signal.aborted && error instanceof Problem && error.status === 409)
      fill(box, h('p', { class: 'muted' }, error.message, ' ', error.remedy));
  } // anything else is retried at the next event
}

/** @param {any} probe */
function report(probe) {
  return [
    h(
      'ul',
      { class: 'advice' },
      probe.advice.map((/** @type {string} */ text) => h('li', {}, text)),
    ),
    table('Numbers of the probe', ['Measured', 'Value'], rows(probe)),
    h(
      'p',
      { class: 'muted' },
      'A teacher gap is the accuracy with this information in the prompt, minus without. It predicts the gain of self-distillation.',
    ),
  ];
}

/** @param {any} probe @returns {string[][]} */
function rows({ result, gaps, seconds_per_step, hours, planned_steps }) {
  const k = result.num_samples;
  const made = [
    ['Questions', `${result.num_questions} with ${k} rollouts each, in ${duration(result.seconds)}`],
    [`avg@${k}`, percent(result.accuracy)],
    [`pass@${k}`, percent(result.pass_at_k)],
    ['Questions all correct', percent(result.all_correct_ratio)],
    ['Questions mixed', percent(result.mixed_ratio)],
    ['Questions all wrong', percent(result.all_wrong_ratio)],
    ['Well formed', percent(result.well_formed_ratio)],
    [
      'Response tokens',
      `${fixed(result.response_tokens_mean, 1)} on average, 95% at most ${result.response_tokens_p95}`,
    ],
    ['Cut at the limit', percent(result.truncated_ratio)],
    ...gaps.map(gapRow),
  ];
  if (result.num_faults) made.push(['Could not be judged', `${result.num_faults} rollouts`]);
  made.push([
    'Time',
    seconds_per_step === null
      ? 'known after the first training step'
      : `${duration(seconds_per_step)} per step, ${duration(3600 * hours)} for ${planned_steps} steps, without evaluations`,
  ]);
  return made;
}

/** @type {Record<string, string>} */
const INFORMATION = {
  solution: 'a correct sibling’s solution',
  feedback: 'feedback on a failed rollout',
  solution_and_feedback: 'solution and feedback',
  reference: 'the solution in the row',
};

/** @param {any} gap @returns {string[]} */
function gapRow(gap) {
  const points = 100 * (gap.taught_accuracy - gap.untaught_accuracy);
  const value = `${points > 0 ? '+' : ''}${fixed(points, 1)} points: ${percent(gap.untaught_accuracy)} without, ${percent(gap.taught_accuracy)} with (${gap.num_questions} questions)`;
  return [`Teacher gap, ${INFORMATION[gap.information] ?? gap.information}`, value];
}
