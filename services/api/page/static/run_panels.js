// One run beside its charts: key numbers, queues, services, events.
// @ts-check
import { hasEnded } from './actions.js';
import { fill, h, table } from './dom.js';
import { ago, clock, duration, fixed, percent, short, size, withUnit } from './format.js';

const MAX_EVENTS = 200;

/** @typedef {import('./stream.js').RunEvent} RunEvent */

/** @param {string} label @param {string} value @param {string} [note] */
function tile(label, value, note = '') {
  return h(
    'div',
    { class: 'tile', dataset: { tile: label } },
    h('dt', {}, label),
    h('dd', {}, value),
    note ? h('dd', { class: 'note' }, note) : null,
  );
}

/**
 * @param {Element} box
 * @param {import('./run_charts.js').Step | undefined} last
 * @param {import('./run_charts.js').Evaluation[]} evaluations in order
 */
export function showTiles(box, last, evaluations) {
  const m = last?.metrics ?? {};
  const newest = evaluations.at(-1);
  const before = evaluations.find((e) => e.split === newest?.split && e.num_samples === newest?.num_samples);
  const gain =
    newest && before && before !== newest
      ? `${percent(before.accuracy)} at step ${before.step}`
      : newest
        ? `after step ${newest.step}`
        : 'no evaluation yet';
  fill(
    box,
    tile('Reward', fixed(m.reward_mean), last ? `step ${last.step}` : ''),
    tile('Correct', percent(m.accuracy), 'of the step’s rollouts'),
    tile(
      newest ? `avg@${newest.num_samples} ${newest.split}` : 'Evaluation',
      percent(newest?.accuracy),
      newest && before !== newest ? `was ${gain}` : gain,
    ),
    tile('To SDPO', percent(m.routing_ratio_sdpo), `teacher informed: ${percent(m.teacher_information_ratio)}`),
    tile('Step time', duration(m.seconds), `${duration(m.seconds_wait)} waiting`),
    tile('Speed', withUnit(m.tokens_per_second, 'token/s'), 'trained'),
  );
}

/** @param {Element} box @param {any[]} queues */
export function showQueues(box, queues) {
  const hints = /** @type {Record<string, string>} */ ({
    prompts: 'a rollout server',
    completions: 'a verifier',
    scored: 'the learner',
    evaluated: 'the learner, to evaluate',
    dead: 'nobody: unreadable messages',
  });
  const most = Math.max(1, ...queues.map((queue) => queue.depth));
  fill(
    box,
    queues.length
      ? table(
          'Queues',
          ['Queue', 'Waits for', 'Groups', '', 'Oldest'],
          queues.map((queue) => [
            queue.stream,
            hints[queue.stream] ?? '',
            short(queue.depth),
            h('meter', { max: most, value: queue.depth, 'aria-label': `${queue.stream}: ${queue.depth} groups` }),
            queue.depth ? duration(queue.oldest_seconds) : '–',
          ]),
          [2, 4],
        )
      : h('p', { class: 'muted' }, 'No queues.'),
  );
}

/**
 * @param {Element} box
 * @param {any[]} services
 * @param {any} run
 * @param {number} published newest weight version
 */
export function showServices(box, services, run, published) {
  const assigned = hasEnded(run.state) ? [] : [run.learner, ...run.rollout_servers];
  const mine = services.filter((s) => s.run_id === run.id || assigned.includes(s.instance) || s.kind === 'verifier');
  if (!mine.some((s) => s.kind !== 'verifier')) {
    fill(
      box,
      h(
        'p',
        { class: 'muted' },
        run.state === 'queued'
          ? 'No service works for this run yet: it waits for an idle learner and an idle rollout server.'
          : 'No service works for this run now.',
      ),
    );
    return;
  }
  fill(
    box,
    table(
      'Services',
      ['Service', 'State', 'Weights', 'Waits for', 'Tokens'],
      mine.map((s) => {
        const behind =
          s.kind === 'rollout' && s.run_id === run.id && s.weight_version !== null ? published - s.weight_version : 0;
        const waits = s.waiting_for
          ? `${s.waiting_for} (${duration(s.at - (s.waiting_since ?? s.at))})`
          : s.state === 'ready'
            ? 'works'
            : '–';
        const version =
          s.weight_version === null ? '–' : `v${s.weight_version}${behind > 0 ? `, ${behind} behind` : ''}`;
        return [
          s.instance,
          s.out_of_rotation ? h('strong', { class: 'bad' }, `out of rotation: ${s.weight_error}`) : s.state,
          version,
          waits,
          short(s.tokens_total),
        ];
      }),
      [4],
    ),
  );
}

/**
 * @param {Element} box
 * @param {any[]} checkpoints in order
 * @param {(step: number) => void} onfork
 */
export function showCheckpoints(box, checkpoints, onfork) {
  const shown = checkpoints.filter((one) => one.exists).reverse();
  const gone = checkpoints.length - shown.length;
  fill(
    box,
    shown.length
      ? table(
          'Checkpoints',
          ['Step', 'Written', 'Size', ''],
          shown.map((one) => [
            one.step,
            h(
              'time',
              { datetime: new Date(one.at * 1000).toISOString() },
              `${ago(one.at)}, in ${duration(one.seconds)}`,
            ),
            size(one.bytes),
            h(
              'button',
              {
                type: 'button',
                class: 'small',
                'aria-label': `Fork from step ${one.step}`,
                onclick: () => onfork(one.step),
              },
              'Fork …',
            ),
          ]),
          [0, 2],
        )
      : h('p', { class: 'muted' }, 'No checkpoint on disk yet. A run can be forked from its checkpoints.'),
    gone
      ? h(
          'p',
          { class: 'muted' },
          `${gone} older ${gone === 1 ? 'one was' : 'ones were'} removed, as checkpoint.keep_last and keep_best ask.`,
        )
      : null,
  );
}

/** One event in words. @param {RunEvent} event @returns {[string, string]} its kind (info, warning, error) and text */
function words({ type, data }) {
  switch (type) {
    case 'state':
      return [
        data.state === 'failed' ? 'error' : 'info',
        `State: ${data.state}${data.reason ? ` (${data.reason})` : ''}`,
      ];
    case 'evaluation':
      return [
        'info',
        `Evaluation after step ${data.step}, ${data.split}: avg@${data.num_samples} ${percent(data.accuracy)}, pass@${data.num_samples} ${percent(data.pass_at_k)}`,
      ];
    case 'checkpoint':
      return ['info', `Checkpoint of step ${data.step}: ${size(data.bytes)} in ${duration(data.seconds)}`];
    case 'note':
      return [data.level, `${data.source}: ${data.text}`];
    default:
      return ['info', type];
  }
}

/** The run's events, newest first. Steps, weights and samples come too often to be listed. */
export class EventList {
  constructor() {
    this.element = h('ol', { class: 'events', tabindex: '0', 'aria-label': 'Events, newest first' });
    this.empty = h('p', { class: 'muted' }, 'No events yet.');
  }

  /** @param {RunEvent[]} events in order */
  add(events) {
    const marks = /** @type {Record<string, string>} */ ({ info: '', warning: 'Warning. ', error: 'Error. ' });
    const listed = events.filter((event) => !['step', 'weights', 'samples'].includes(event.type)).slice(-MAX_EVENTS);
    const items = listed.map((event) => {
      const [level, text] = words(event);
      const at = new Date(event.data.at * 1000);
      return h(
        'li',
        { dataset: { level } },
        h('time', { datetime: at.toISOString(), title: at.toLocaleString() }, clock(event.data.at)),
        h('span', {}, marks[level] ? h('strong', {}, marks[level]) : null, text),
      );
    });
    this.element.prepend(...items.reverse());
    while (this.element.children.length > MAX_EVENTS) this.element.lastElementChild?.remove();
    this.empty.hidden = this.element.children.length > 0;
  }
}
