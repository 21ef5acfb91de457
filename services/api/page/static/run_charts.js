// The charts of one run: which numbers, and how to read them.
// @ts-check
import { Chart } from './chart.js';
import { duration, fixed, percent, withUnit } from './format.js';

/** @typedef {{step: number, at: number, metrics: Record<string, number>}} Step */
/** @typedef {{step: number, at: number, split: string, num_samples: number, accuracy: number, pass_at_k: number}} Evaluation */
/** @typedef {import('./chart.js').Series} Series */
/** @typedef {{chart: Chart, series: (steps: Step[], evaluations: Evaluation[]) => Series[], summary: (last: Record<string, number>) => string}} Panel */

/**
 * One number over the steps.
 * @param {Step[]} steps
 * @param {string} metric
 * @param {string} name
 * @param {Partial<Series>} [style]
 * @returns {Series}
 */
function line(steps, metric, name, style = {}) {
  return { name, x: steps.map((s) => s.step), y: steps.map((s) => s.metrics[metric] ?? null), ...style };
}

/**
 * A number of the teacher's: none where no rollout was routed to it, which its 0 would hide.
 * @param {Step[]} steps
 * @param {string} metric
 * @param {string} name
 * @param {Partial<Series>} style
 */
function taught(steps, metric, name, style) {
  const read = steps.map((s) => (s.metrics.routing_ratio_sdpo ? (s.metrics[metric] ?? null) : null));
  return { ...line(steps, metric, name, style), y: read };
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

/** @param {Step[]} steps @returns {Series[]} */
function phases(steps) {
  const names = [
    ['seconds_wait', 'wait'],
    ['seconds_teacher', 'teacher'],
    ['seconds_train', 'train'],
    ['seconds_publish', 'publish'],
    ['seconds_checkpoint', 'save'],
  ];
  const known = names.map(([metric, name], i) => line(steps, metric, name, { kind: 'bars', color: i }));
  const rest = steps.map((s) =>
    Math.max(0, (s.metrics.seconds ?? 0) - names.reduce((sum, [metric]) => sum + (s.metrics[metric] ?? 0), 0)),
  );
  return [...known, { name: 'other', x: steps.map((s) => s.step), y: rest, kind: 'bars', color: 7 }];
}

/** More points than this cannot be told apart, and make a long run's charts slow. */
const MOST_POINTS = 600;

/**
 * Steps as they are drawn: those of a long run in equal stretches, each with its means (of `_max` the largest).
 * @param {Step[]} steps in order
 * @returns {{points: Step[], width: number}} `width`: steps a point
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
  return [
    {
      chart: new Chart(
        'Reward and accuracy',
        'Thin lines: the step’s own rollouts. Points: evaluations, avg@k and pass@k.',
        { zero: false },
      ),
      series: (steps, evaluations) => [
        line(steps, 'reward_mean', 'reward', { color: 0, width: 1.4 }),
        line(steps, 'accuracy', 'correct share', { color: 1, width: 1.4, dash: 'dash' }),
        ...evaluated(evaluations),
      ],
      summary: (m) => `reward ${fixed(m.reward_mean)}, correct ${percent(m.accuracy)}`,
    },
    {
      chart: new Chart(
        'Routing',
        'Correct rollouts go to GRPO, failed ones with a correct sibling to SDPO. SDPO should shrink as the policy learns.',
        { percent: true, stacked: true },
      ),
      series: (steps) => [
        line(steps, 'routing_ratio_grpo', 'GRPO', { kind: 'area', color: 0 }),
        line(steps, 'routing_ratio_sdpo', 'SDPO', { kind: 'area', color: 1 }),
      ],
      summary: (m) => `GRPO ${percent(m.routing_ratio_grpo)}, SDPO ${percent(m.routing_ratio_sdpo)}`,
    },
    {
      chart: new Chart(
        'Entropy',
        'A policy that falls to 0 early has stopped exploring. The teacher should be surer than the policy.',
        { unit: 'nats' },
      ),
      series: (steps) => [
        line(steps, 'policy_entropy_nats', 'policy', { color: 0 }),
        taught(steps, 'teacher_entropy_nats', 'teacher', { color: 1, dash: 'dash' }),
      ],
      summary: (m) =>
        `policy ${withUnit(m.policy_entropy_nats, 'nats')}, teacher ${withUnit(m.teacher_entropy_nats, 'nats')}`,
    },
    {
      chart: new Chart(
        'Divergence',
        'From the policy to its teacher, over tokens routed to SDPO: what there is to correct.',
        { unit: 'nats', empty: 'No rollout was routed to SDPO yet' },
      ),
      series: (steps) => [taught(steps, 'divergence_nats', 'mean', { color: 1 })],
      summary: (m) => `mean ${withUnit(m.divergence_nats, 'nats')}`,
    },
    {
      chart: new Chart('Staleness', 'Age of the trained tokens. The largest stays within the run’s max_staleness.', {
        unit: 'versions',
      }),
      series: (steps) => [
        line(steps, 'staleness_mean', 'mean', { color: 0 }),
        line(steps, 'staleness_max', 'largest', { color: 1, dash: 'dash' }),
      ],
      summary: (m) => `mean ${fixed(m.staleness_mean, 2)}, largest ${fixed(m.staleness_max, 0)} versions`,
    },
    {
      chart: new Chart(
        'Engine mismatch',
        'Distance between the log-probs of sampling and training. A rise means that the two no longer agree.',
        { unit: 'nats' },
      ),
      series: (steps) => [
        line(steps, 'logprob_mismatch_nats', 'mean |difference|', { color: 0 }),
        line(steps, 'logprob_mismatch_kl_nats', 'KL', { color: 1, dash: 'dash' }),
      ],
      summary: (m) =>
        `difference ${withUnit(m.logprob_mismatch_nats, 'nats')}, KL ${withUnit(m.logprob_mismatch_kl_nats, 'nats')}`,
    },
    {
      chart: new Chart('Response length', 'Lengths that run into the limit are cut, and count as failed.', {
        unit: 'tokens',
      }),
      series: (steps) => [
        line(steps, 'response_tokens_mean', 'mean', { color: 0 }),
        line(steps, 'response_tokens_max', 'longest', { color: 1, dash: 'dash' }),
      ],
      summary: (m) =>
        `mean ${withUnit(m.response_tokens_mean, 'tokens')}, longest ${withUnit(m.response_tokens_max, 'tokens')}`,
    },
    {
      chart: new Chart(
        'Step time',
        'Much wait: sampling is the slow part; add rollout servers or allow more staleness.',
        { unit: 'seconds' },
      ),
      series: phases,
      summary: (m) => `${duration(m.seconds)} a step, ${duration(m.seconds_wait)} of it waiting`,
    },
    {
      chart: new Chart(
        'Gradient and clipping',
        'Norm before clipping, and the shares of tokens clipped or truncated.',
        {},
      ),
      series: (steps) => [
        line(steps, 'gradient_norm', 'gradient norm', { color: 0 }),
        line(steps, 'clip_ratio', 'clipped', { color: 1, dash: 'dash' }),
        line(steps, 'importance_weight_truncated_ratio', 'truncated', { color: 4, dash: 'dot' }),
      ],
      summary: (m) =>
        `norm ${fixed(m.gradient_norm)}, clipped ${percent(m.clip_ratio)}, truncated ${percent(m.importance_weight_truncated_ratio)}`,
    },
  ];
}
