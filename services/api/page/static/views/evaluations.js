// The list of evaluations: what, state, progress, results.
// @ts-check

import { call } from '../api.js';
import { poll } from '../connection.js';
import { fill, fillIfChanged, h, heading, notice } from '../dom.js';
import { ago } from '../format.js';
import { badge, problemBox } from '../parts/actions.js';
import { evaluationLink, progressBar, shareText, subject } from '../parts/evaluation_panels.js';
import { olderNote } from '../parts/older.js';

const POLL_SECONDS = 4;
const MOST = 200;

/** @type {import('../app.js').View} */
export function evaluationsView(box, { query }, signal) {
  const run = query.get('run');
  const list = h('div', { class: 'runs' }, notice('loading', 'Loading evaluations …'));
  const problem = h('div');
  const id = run ? encodeURIComponent(run) : '';
  fill(
    box,
    h(
      'div',
      { class: 'title-row' },
      heading(run ? `Evaluations of ${run}` : 'Evaluations'),
      h(
        'div',
        { class: 'actions' },
        run ? h('a', { class: 'button', href: `#/runs/${id}/changes` }, 'Learned and forgotten in training') : null,
        h('a', { class: 'button', href: `#/evaluations/compare${run ? `?run=${id}` : ''}` }, 'Compare …'),
      ),
    ),
    h(
      'p',
      { class: 'muted' },
      'Models and checkpoints on validation sets, without training. Start one with ',
      h('code', {}, run ? `turnout evaluate --run ${run}` : 'turnout evaluate'),
      '. ',
      run ? h('a', { href: '#/evaluations' }, 'See all evaluations') : null,
    ),
    problem,
    list,
  );
  poll(
    POLL_SECONDS,
    signal,
    async () => {
      const page = await call(`/v1/evaluations?limit=${MOST}${run ? `&run=${id}` : ''}`, { signal });
      if (signal.aborted) return;
      fill(problem);
      render(list, page, Boolean(run));
    },
    (error) => {
      if (list.querySelector('.loading')) fill(list);
      fill(problem, problemBox(error));
    },
  );
}

/** @param {HTMLElement} list @param {any} page @param {boolean} ofRun */
function render(list, page, ofRun) {
  const rows = page.items.map((/** @type {any} */ item) => ({ ...item, created: ago(item.created_at) }));
  fillIfChanged(list, rows.length ? rows : 'none', () => {
    if (rows.length) {
      return [rows.map(row), page.next_cursor ? olderNote(rows.length, 'turnout evaluations list') : null];
    }
    return notice(
      'empty',
      ofRun ? 'No evaluations of this run’s weights yet.' : 'No evaluations yet.',
      ofRun ? 'What it measures while it trains is in its own charts.' : 'Runs’ own evaluations are in their charts.',
    );
  });
}

/** @param {any} item */
function row(item) {
  const failed = item.state === 'failed';
  return h(
    'article',
    { class: 'card run', dataset: { evaluation: item.id } },
    h(
      'div',
      { class: 'run-name' },
      h('h2', {}, h('a', { href: evaluationLink(item.id) }, item.name)),
      h(
        'p',
        { class: 'run-about' },
        h('span', {}, item.id),
        h('span', {}, subject(item)),
        h('span', {}, `created ${item.created}`),
      ),
    ),
    h(
      'div',
      { class: 'run-state' },
      badge(item.state),
      item.reason && !failed ? h('p', { class: 'reason' }, item.reason) : null,
    ),
    h('div', { class: 'run-progress' }, progressBar(item)),
    h(
      'p',
      { class: 'run-reward' },
      item.results.map((/** @type {any} */ one) =>
        h('span', { class: 'newest' }, `${one.set} `, h('strong', {}, shareText(one.accuracy))),
      ),
    ),
    h('p', { class: 'run-why reason bad' }, failed ? item.reason : ''),
  );
}
