// Everything about one run except its charts: heading, key numbers, queues, services, checkpoints, events.
// @ts-check

import { runPath } from '../api.js';
import { fill, h, heading, spoken, table } from '../dom.js';
import { ago, clock, duration, percent, short, size } from '../format.js';
import { badge, buttons, deleteButton, hasEnded, hideButton, noticesOf, tagsOf, whyOf } from './actions.js';
import { openDetails } from './details.js';
import { metricText } from './metrics.js';

const MAX_EVENTS = 200;

/** @typedef {import('../stream.js').RunEvent} RunEvent */

/**
 * The heading with state and buttons; rebuilt only when it changes, so that it keeps the focus.
 * @param {HTMLElement} head
 * @param {any} run
 * @param {number | undefined} pace seconds per step
 * @param {{canFork: boolean, onfork: () => void, onchanged: (run: any) => void, onproblem: (problem: any) => void}} act
 */
export function showHead(head, run, pace, { canFork, onfork, onchanged, onproblem }) {
  const why = whyOf(run);
  const says = JSON.stringify([run.state, why, run.desired, canFork, run.name, run.tags, run.note, run.priority]);
  if (head.dataset.says !== says) {
    const focused = head.contains(document.activeElement) ? document.activeElement?.tagName : null;
    head.dataset.says = says;
    const id = encodeURIComponent(run.id);
    const parent = run.forked_from?.run_id;
    const asked =
      run.desired === 'paused' && ['starting', 'running'].includes(run.state) ? 'pausing after this step' : '';
    fill(
      head,
      h('p', { class: 'crumbs' }, h('a', { href: '#/' }, 'Runs'), ' / ', run.id),
      h(
        'div',
        { class: 'title-row' },
        heading(run.name, ' '),
        badge(run.state),
        h(
          'div',
          { class: 'actions' },
          buttons(run, onchanged, onproblem),
          h(
            'button',
            { type: 'button', class: 'operate', onclick: () => openDetails(run, runPath(run.id), onchanged) },
            'Edit …',
          ),
          hideButton(run, onchanged, onproblem),
          canFork ? h('button', { type: 'button', class: 'operate', onclick: onfork }, 'Fork …') : null,
          h('a', { class: 'button', href: `#/runs/${id}/samples` }, 'Samples'),
          h('a', { class: 'button', href: `#/runs/${id}/changes` }, 'Learned and forgotten'),
          h(
            'a',
            { class: 'button', href: `#/compare?runs=${[run.id, parent].filter(Boolean).map(encodeURIComponent)}` },
            'Compare',
          ),
          deleteButton(run, onproblem),
        ),
      ),
      parent
        ? h(
            'p',
            { class: 'reason' },
            'Forked from ',
            h('a', { href: `#/runs/${encodeURIComponent(parent)}` }, parent),
            ` at step ${run.forked_from.step}`,
          )
        : null,
      asked || why
        ? h('p', { class: run.state === 'failed' ? 'reason bad' : 'reason' }, [asked, why].filter(Boolean).join(' · '))
        : null,
      run.tags.length ? h('p', { class: 'tags' }, tagsOf(run)) : null,
      run.note ? h('p', { class: 'run-note' }, run.note) : null,
      noticesOf(run.notices),
      h(
        'div',
        { class: 'run-progress wide' },
        h('progress', { max: run.num_steps, 'aria-label': 'Steps' }),
        h('span', { class: 'run-steps' }),
      ),
    );
    // A button that was pressed may be gone; the heading takes the focus, so that keyboard users keep their place.
    if (focused)
      /** @type {HTMLElement} */ (
        focused === 'H1' ? head.querySelector('h1') : (head.querySelector('button') ?? head.querySelector('h1'))
      ).focus();
  }
  /** @type {any} */ (head.querySelector('progress')).value = run.step;
  const end = hasEnded(run.state) ? run.finished_at : Date.now() / 1000;
  const parts = [`step ${run.step} of ${run.num_steps}`, run.objective];
  if (run.started_at) parts.push(`${hasEnded(run.state) ? 'took' : 'for'} ${duration(end - run.started_at)}`);
  if (pace !== undefined && run.state === 'running')
    parts.push(`about ${duration(pace * (run.num_steps - run.step))} left`);
  fill(/** @type {Element} */ (head.querySelector('.run-steps')), parts.join(' · '));
}

/** @param {Element} place @param {Record<string, number>} groups */
export function showLedger(place, groups) {
  if (!Object.keys(groups).length) return fill(place);
  const dropped = Object.entries(groups).filter(([name, count]) => name.startsWith('dropped_') && count);
  const reasons = dropped.map(([name, count]) => `${count} ${name.replace('dropped_', '').replaceAll('_', ' ')}`);
  const names = ['fed', 'trained', 'in_flight', ...(groups.replaced ? ['replaced'] : [])];
  const parts = names.map((name) => `${groups[name] ?? 0} ${name.replace('_', ' ')}`);
  fill(
    place,
    `Groups so far: ${parts.join(', ')}; ${reasons.length ? `dropped: ${reasons.join(', ')}` : 'none dropped'}. `,
    'Scored groups stay in their queue until the next checkpoint, in case the learner has to train them again.',
  );
}

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
  const main = evaluations[0]?.split; // the first set of a run is evaluated first
  const newest = evaluations.filter((e) => e.split === main).at(-1);
  const before = evaluations.find((e) => e.split === main && e.num_samples === newest?.num_samples);
  const gain =
    newest && before && before !== newest
      ? `${percent(before.accuracy)} at step ${before.step}`
      : newest
        ? `after step ${newest.step}`
        : 'no evaluation yet';
  fill(
    box,
    tile('Reward', metricText('reward_mean', m), last ? `step ${last.step}` : ''),
    tile('Correct', metricText('accuracy', m), 'of the step’s rollouts'),
    tile(
      newest ? `avg@${newest.num_samples} ${newest.split}` : 'Evaluation',
      percent(newest?.accuracy),
      newest && before !== newest ? `was ${gain}` : gain,
    ),
    tile(
      'To SDPO',
      metricText('routing_ratio_sdpo', m),
      `teacher informed: ${metricText('teacher_information_ratio', m)}`,
    ),
    tile('Step time', metricText('seconds', m), `${metricText('seconds_wait', m)} waiting`),
    tile('Speed', metricText('tokens_per_second', m), 'trained'),
  );
}

/** @param {Element} box @param {any[]} queues */
export function showQueues(box, queues) {
  const hints = /** @type {Record<string, string>} */ ({
    prompts: 'a rollout server',
    completions: 'a verifier',
    scored: 'the learner',
    evaluated: 'the learner, to evaluate',
    dead: 'nothing: unreadable messages',
  });
  const most = Math.max(1, ...queues.map((queue) => queue.depth));
  fill(
    box,
    queues.length
      ? table(
          'Queues',
          ['Queue', 'Waits for', 'Groups', spoken('Fill level'), 'Oldest'],
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
          ? 'No services are assigned to this run yet. It is waiting for an idle learner and an idle rollout server.'
          : 'No services are assigned to this run.',
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
            ? 'working'
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
          ['Step', 'Written', 'Size', spoken('Actions')],
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
                class: 'small operate',
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
          `${gone} older ${gone === 1 ? 'checkpoint was' : 'checkpoints were'} removed, according to checkpoint.keep_last and keep_best.`,
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
    case 'probe':
      return ['info', `Probe: ${data.num_questions} questions, avg@${data.num_samples} ${percent(data.accuracy)}`];
    case 'note':
      return [data.level, `${data.source}: ${data.text}`];
    default:
      return ['info', type];
  }
}

/** The run's events, newest first. Steps, weights and samples are too frequent to be listed. */
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
