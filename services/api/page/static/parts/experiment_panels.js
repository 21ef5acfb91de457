// One experiment except its results: heading, methods, runs, file.
// @ts-check

import { call, experimentPath } from '../api.js';
import { announce, fill, fillIfChanged, h, heading, notice, save, table } from '../dom.js';
import { duration, percent } from '../format.js';
import { badge, confirm } from './actions.js';
import { methodsOf, newestText, progressOf, valuesText } from './experiment_progress.js';

/** More runs than this cannot be compared on one chart. */
const MOST_COMPARED = 8;

/**
 * @param {HTMLElement} head
 * @param {any} experiment
 * @param {{onchanged: (experiment: any) => void, onproblem: (problem: any) => void, ondownload: () => void}} act
 */
export function showHead(head, experiment, { onchanged, onproblem, ondownload }) {
  const { id, name, state, reason, file, created_at, finished_at } = experiment;
  const act = async (/** @type {string} */ action) => {
    try {
      onchanged(await call(`${experimentPath(id)}/${action}`, { method: 'POST' }));
    } catch (error) {
      onproblem(error);
    }
  };
  fillIfChanged(head, [state, reason], () => [
    h('p', { class: 'crumbs' }, h('a', { href: '#/experiments' }, 'Experiments'), ' / ', id),
    h(
      'div',
      { class: 'title-row' },
      heading(name, ' '),
      badge(state),
      h(
        'div',
        { class: 'actions' },
        state === 'running'
          ? h(
              'button',
              {
                type: 'button',
                class: 'danger operate',
                onclick: async () => (await confirmStop(name)) && act('stop'),
              },
              'Stop …',
            )
          : null,
        ['stopped', 'failed'].includes(state)
          ? h('button', { type: 'button', class: 'operate', onclick: () => act('resume') }, 'Resume')
          : null,
        h('button', { type: 'button', onclick: ondownload }, 'Download results'),
        state === 'running'
          ? null
          : h(
              'button',
              { type: 'button', class: 'danger operate', onclick: () => deleteExperiment(experiment, onproblem) },
              'Delete …',
            ),
      ),
    ),
    file.description ? h('p', { class: 'description' }, file.description) : null,
    reason ? h('p', { class: state === 'failed' ? 'reason bad' : 'reason' }, reason) : null,
    h(
      'div',
      { class: 'run-progress wide' },
      h('progress', { 'aria-label': 'Runs' }),
      h('span', { class: 'run-steps' }),
    ),
  ]);
  const progress = progressOf(experiment);
  const bar = /** @type {any} */ (head.querySelector('progress'));
  bar.max = progress.total;
  bar.value = progress.ended;
  const parts = [`${progress.ended} of ${progress.total} runs ended`];
  if (progress.running) parts.push(`${progress.running} running`);
  parts.push(`${finished_at ? 'took' : 'for'} ${duration((finished_at ?? Date.now() / 1000) - created_at)}`);
  if (experiment.seconds_left !== null) parts.push(`about ${duration(experiment.seconds_left)} left`);
  fill(/** @type {Element} */ (head.querySelector('.run-steps')), parts.join(' · '));
}

/** @param {string} name */
function confirmStop(name) {
  return confirm(
    `Stop ${name}?`,
    'Its runs finish their step and write a checkpoint each. Resuming the experiment continues them.',
    'Keep running',
    [{ text: 'Stop with checkpoints', value: 'stop', kind: 'primary' }],
  );
}

/** @param {any} experiment @param {(problem: any) => void} onproblem */
async function deleteExperiment({ id, name }, onproblem) {
  const choice = await confirm(
    `Delete ${name}?`,
    'Its file, choices and results will be deleted and cannot be restored. Its runs stay.',
    'Keep it',
    [{ text: 'Delete permanently', value: 'delete', kind: 'danger' }],
  );
  if (!choice) return;
  try {
    await call(experimentPath(id), { method: 'DELETE' });
    announce(`${name} was deleted`);
    location.hash = '#/experiments';
  } catch (error) {
    onproblem(error);
  }
}

/** @param {HTMLElement} box @param {any} experiment */
export function showMethods(box, experiment) {
  const methods = methodsOf(experiment);
  const tunes = Boolean(experiment.file.tuning);
  fillIfChanged(box, [methods, tunes], () =>
    table(
      'Methods',
      ['Method', ...(tunes ? ['Tuning'] : []), 'Final', 'Newest accuracy', ...(tunes ? ['Chosen settings'] : [])],
      methods.map((method) => [
        [method.name, method.isBaseline ? h('span', { class: 'muted' }, ' (baseline)') : ''],
        ...(tunes ? [count(method.tuning)] : []),
        count(method.final),
        method.newest === null ? '–' : `${newestText(method)} (${method.newestPhase})`,
        ...(tunes ? [method.chosen ? valuesText(method.chosen) : 'not chosen yet'] : []),
      ]),
      tunes ? [1, 2, 3] : [1, 2],
    ),
  );
}

/** @param {[number, number]} counts */
function count([ended, all]) {
  return `${ended} of ${all}`;
}

/** @param {HTMLElement} box @param {any} experiment */
export function showRuns(box, { runs }) {
  fillIfChanged(box, runs, () => {
    const started = runs.filter((/** @type {any} */ run) => run.run_id);
    if (!started.length) return notice('empty', 'No run has started yet.');
    const finals = started.filter((/** @type {any} */ run) => run.phase === 'final').slice(0, MOST_COMPARED);
    const ids = finals.map((/** @type {any} */ run) => encodeURIComponent(run.run_id));
    return [
      ids.length > 1
        ? h(
            'p',
            { class: 'muted' },
            h(
              'a',
              { href: `#/compare?runs=${ids}&y=evaluation:accuracy` },
              `Compare the first ${ids.length} final runs`,
            ),
          )
        : null,
      h(
        'div',
        { class: 'long' },
        table(
          'Runs',
          ['Run', 'Phase', 'Method', 'Settings', 'Seed', 'State', 'Steps', 'Accuracy'],
          runs.map(runRow),
          [4, 6, 7],
        ),
      ),
    ];
  });
}

/** @param {any} run */
function runRow(run) {
  return [
    run.run_id ? h('a', { href: `#/runs/${encodeURIComponent(run.run_id)}` }, run.run_id) : '–',
    run.phase,
    run.method,
    valuesText(run.values) || '–',
    run.seed,
    run.state ? badge(run.state) : 'not started',
    `${run.step} of ${run.num_steps}`,
    percent(run.accuracy),
  ];
}

/** The file, shown once: it does not change. @param {HTMLElement} box @param {any} experiment */
export function showFile(box, { id, file, digest, inputs }) {
  const text = JSON.stringify(file, null, 2);
  const facts = [
    ['Digest of the file, SHA-256', digest],
    ...Object.entries(inputs).map(([path, one]) => [`Digest of ${path}`, one]),
  ];
  fill(
    box,
    h(
      'details',
      {},
      h('summary', {}, 'Experiment file'),
      h(
        'p',
        { class: 'muted' },
        'As it was stored before the first run; ',
        h('code', {}, 'turnout experiment'),
        ' reads it.',
      ),
      h('pre', { tabindex: '0' }, text),
      h(
        'dl',
        { class: 'facts digests' },
        facts.map(([name, value]) => [h('dt', {}, name), h('dd', {}, h('code', {}, value))]),
      ),
      h(
        'button',
        { type: 'button', class: 'small', onclick: () => save(`${id}.json`, 'application/json', `${text}\n`) },
        'Download file',
      ),
    ),
  );
}
