// The list of experiments: state, progress, newest accuracy of each method.
// @ts-check

import { call, experimentPath } from '../api.js';
import { poll } from '../connection.js';
import { fill, fillIfChanged, h, heading, notice } from '../dom.js';
import { ago, duration } from '../format.js';
import { badge, problemBox } from '../parts/actions.js';
import { methodsOf, newestText, progressOf } from '../parts/experiment_progress.js';
import { olderNote } from '../parts/older.js';

const MOST = 50;
const POLL_SECONDS = 4;

/** @type {import('../app.js').View} */
export function experimentsView(box, _address, signal) {
  const list = h('div', { class: 'runs' }, notice('loading', 'Loading experiments …'));
  fill(
    box,
    heading('Experiments'),
    h(
      'p',
      { class: 'muted' },
      'Methods compared over several seeds, each with its own tuning. Start one with ',
      h('code', {}, 'turnout experiment FILE'),
      '.',
    ),
    list,
  );
  /** @type {Map<string, any>} the newest known details of each experiment */
  const details = new Map();
  poll(
    POLL_SECONDS,
    signal,
    async () => {
      const { items, next_cursor: older } = await call(`/v1/experiments?limit=${MOST}`, { signal });
      if (signal.aborted) return;
      render(list, items, details, older !== null);
      for (const item of items) {
        if (item.state !== 'running' && details.get(item.id)?.state === item.state) continue;
        details.set(item.id, await call(experimentPath(item.id), { signal }).catch(() => details.get(item.id)));
        if (signal.aborted) return;
        render(list, items, details, older !== null);
      }
    },
    (problem) => fill(list, problemBox(problem)),
  );
}

/** @param {HTMLElement} list @param {any[]} items @param {Map<string, any>} details @param {boolean} areOlder */
function render(list, items, details, areOlder) {
  const rows = items.map((item) => ({ ...item, detail: details.get(item.id), created: ago(item.created_at) }));
  fillIfChanged(list, rows.length ? rows : 'none', () =>
    rows.length
      ? [rows.map(row), areOlder ? olderNote(rows.length, 'turnout experiments list') : null]
      : notice('empty', 'No experiments yet.'),
  );
}

/** @param {any} item */
function row(item) {
  const { detail } = item;
  const progress = detail ? progressOf(detail) : null;
  const failed = item.state === 'failed';
  return h(
    'article',
    { class: 'card run experiment', dataset: { experiment: item.id } },
    h(
      'div',
      { class: 'run-name' },
      h('h2', {}, h('a', { href: `#/experiments/${encodeURIComponent(item.id)}` }, item.name)),
      h('p', { class: 'run-about' }, h('span', {}, item.id), h('span', {}, `created ${item.created}`)),
    ),
    h(
      'div',
      { class: 'run-state' },
      badge(item.state),
      item.reason && !failed ? h('p', { class: 'reason' }, item.reason) : null,
    ),
    h(
      'div',
      { class: 'run-progress' },
      progress
        ? [
            h('progress', { max: progress.total, value: progress.ended, 'aria-label': `Runs of ${item.name}` }),
            h(
              'span',
              { class: 'run-steps' },
              `${progress.ended} of ${progress.total} runs ended`,
              detail.seconds_left === null ? '' : ` · about ${duration(detail.seconds_left)} left`,
            ),
          ]
        : h('span', { class: 'run-steps' }, '…'),
    ),
    h('p', { class: 'run-reward' }, detail ? methodsOf(detail).map(newest) : ''),
    h('p', { class: 'run-why reason bad' }, failed ? item.reason : ''),
  );
}

/** @param {import('../parts/experiment_progress.js').Method} method */
function newest(method) {
  return h('span', { class: 'newest' }, `${method.name} `, h('strong', {}, newestText(method)));
}
