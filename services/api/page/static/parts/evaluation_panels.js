// What the views of evaluations share: the heading, results with intervals, and changed questions.
// @ts-check

import { call, evaluationPath } from '../api.js';
import { announce, fillIfChanged, h, heading, table } from '../dom.js';
import { duration, fixed, percent } from '../format.js';
import { badge, confirm } from './actions.js';
import { openDetails } from './details.js';

const SIDES = /** @type {[string, string, string][]} */ ([
  ['learned', 'Learned', 'Solved only in the second.'],
  ['forgotten', 'Forgotten', 'Solved only in the first.'],
]);
export const SOLVED = 'A question is solved if at least half of its samples are correct.';

/** @typedef {{value: number, low: number | null, high: number | null}} Estimate */

/** @param {string} state */
export function isGoing(state) {
  return state === 'queued' || state === 'running';
}

/** @param {string} id */
export function evaluationLink(id) {
  return `#/evaluations/${encodeURIComponent(id)}`;
}

/** What is evaluated. @param {any} evaluation */
export function subject({ model, run, step }) {
  if (!run) return model;
  return [h('a', { href: `#/runs/${encodeURIComponent(run)}` }, run), ` at step ${step}`];
}

/** A mean with its interval in percent. @param {Estimate} estimate */
export function shareText({ value, low, high }) {
  return [percent(value), bounds(low, high, (one) => fixed(one * 100, 1))];
}

/** The same for a difference, in points. @param {Estimate} estimate */
function pointsText({ value, low, high }) {
  const points = (/** @type {number} */ one) => `${one > 0 ? '+' : ''}${fixed(one * 100, 1)}`;
  return [points(value), bounds(low, high, points)];
}

/** @param {number | null} low @param {number | null} high @param {(value: number) => string} format */
function bounds(low, high, format) {
  return low === null || high === null ? null : h('span', { class: 'interval' }, ` [${format(low)}, ${format(high)}]`);
}

/** @param {any} evaluation */
export function progressBar({ name, state, num_done: done, num_questions: all }) {
  return [
    h('progress', { max: all || 1, value: done, 'aria-label': `Questions of ${name}` }),
    h(
      'span',
      { class: 'run-steps' },
      all === null
        ? isGoing(state)
          ? 'The questions have not been read yet'
          : 'no questions were read'
        : `${done} of ${all} questions`,
    ),
  ];
}

/**
 * @param {HTMLElement} head
 * @param {any} evaluation
 * @param {{onchanged: (evaluation: any) => void, onproblem: (problem: any) => void}} act
 */
export function showHead(head, evaluation, { onchanged, onproblem }) {
  const { id, name, state, reason, run } = evaluation;
  const query = new URLSearchParams({ first: id, ...(run ? { run } : {}) });
  fillIfChanged(head, [state, reason, name, evaluation.priority], () => [
    h('p', { class: 'crumbs' }, h('a', { href: '#/evaluations' }, 'Evaluations'), ' / ', id),
    h(
      'div',
      { class: 'title-row' },
      heading(name, ' '),
      badge(state),
      h(
        'div',
        { class: 'actions' },
        h('a', { class: 'button', href: `#/evaluations/compare?${query}` }, 'Compare …'),
        h(
          'button',
          { type: 'button', class: 'operate', onclick: () => openDetails(evaluation, evaluationPath(id), onchanged) },
          'Edit …',
        ),
        isGoing(state)
          ? h(
              'button',
              { type: 'button', class: 'danger operate', onclick: () => cancel(evaluation, onchanged, onproblem) },
              'Cancel …',
            )
          : h(
              'button',
              { type: 'button', class: 'danger operate', onclick: () => remove(evaluation, onproblem) },
              'Delete …',
            ),
      ),
    ),
    h('p', { class: 'muted' }, subject(evaluation)),
    reason ? h('p', { class: state === 'failed' ? 'reason bad' : 'reason' }, reason) : null,
    h('div', { class: 'run-progress wide' }, progressBar(evaluation)),
  ]);
  const [bar, text] = progressBar(evaluation);
  head.querySelector('progress')?.replaceWith(bar);
  text.append(timeText(evaluation));
  head.querySelector('.run-steps')?.replaceWith(text);
}

/** @param {any} evaluation */
function timeText({ state, started_at: start, finished_at: end, rollout_servers: servers }) {
  if (!start) return '';
  const lasted = end ? ` · took ${duration(end - start)}` : ` · for ${duration(Date.now() / 1000 - start)}`;
  return lasted + (state === 'running' && servers.length ? ` · sampled by ${servers.join(', ')}` : '');
}

/** @param {any} evaluation @param {(evaluation: any) => void} onchanged @param {(problem: any) => void} onproblem */
async function cancel({ id, name }, onchanged, onproblem) {
  const choice = await confirm(
    `Cancel ${name}?`,
    'The results that it has stay. It cannot be resumed.',
    'Keep running',
    [{ text: 'Cancel the evaluation', value: 'cancel', kind: 'danger' }],
  );
  if (!choice) return;
  try {
    onchanged(await call(`${evaluationPath(id)}/cancel`, { method: 'POST' }));
    announce(`${name} was cancelled`);
  } catch (error) {
    onproblem(error);
  }
}

/** @param {any} evaluation @param {(problem: any) => void} onproblem */
async function remove({ id, name }, onproblem) {
  const choice = await confirm(`Delete ${name}?`, 'Its results will be deleted and cannot be restored.', 'Keep it', [
    { text: 'Delete permanently', value: 'delete', kind: 'danger' },
  ]);
  if (!choice) return;
  try {
    await call(evaluationPath(id), { method: 'DELETE' });
    announce(`${name} was deleted`);
    location.hash = '#/evaluations';
  } catch (error) {
    onproblem(error);
  }
}

/** Two tables: numbers per set, and pass@k. @param {any[]} results */
export function resultTables(results) {
  const ks = [...new Set(results.flatMap((one) => one.pass_at_k.map((/** @type {any} */ item) => item.k)))];
  ks.sort((a, b) => a - b);
  const columns = ['Set', 'Questions', 'Samples', 'Temperature', 'avg@k', 'Solved', 'Tokens', 'Cut', 'Faults'];
  return [
    table(
      'Results',
      columns,
      results.map((one) => [
        one.set,
        one.num_questions,
        one.num_samples,
        one.temperature,
        shareText(one.accuracy),
        one.num_solved,
        fixed(one.response_tokens_mean, 0),
        percent(one.truncated_ratio),
        one.num_faults || '–',
      ]),
      [1, 2, 3, 4, 5, 6, 7, 8],
    ),
    table(
      'pass@k',
      ['Set', ...ks.map((k) => `pass@${k}`)],
      results.map((one) => [one.set, ...ks.map((k) => passText(one, k))]),
      ks.map((_, index) => index + 1),
    ),
  ];
}

/** @param {any} result @param {number} k */
function passText(result, k) {
  const found = result.pass_at_k.find((/** @type {any} */ item) => item.k === k);
  return found ? shareText(found.share) : '–';
}

/**
 * What changed per set, then the questions learned and forgotten.
 * @param {any} difference
 * @param {(set: string, question: any) => any} cell how a question is shown
 */
export function differencePanels({ sets, num_unpaired: unpaired }, cell) {
  const left = unpaired
    ? `${unpaired} ${unpaired === 1 ? 'question is' : 'questions are'} left out because only one of the two has them.`
    : '';
  return [
    h(
      'section',
      { class: 'card part', 'aria-label': 'Differences' },
      h('h2', {}, 'Differences'),
      h(
        'p',
        { class: 'muted' },
        'avg@k of the questions that both have; the difference in points with its 95% interval. ',
        SOLVED,
        left ? ` ${left}` : '',
      ),
      table(
        'Differences',
        ['Set', 'Questions', 'First', 'Second', 'Difference', 'Better', 'Worse', 'Learned', 'Forgotten'],
        sets.map((/** @type {any} */ one) => [
          one.set,
          one.num_questions,
          percent(one.before),
          percent(one.after),
          pointsText(one.difference),
          one.num_better,
          one.num_worse,
          one.learned.length,
          one.forgotten.length,
        ]),
        [1, 2, 3, 4, 5, 6, 7, 8],
      ),
    ),
    h(
      'div',
      { class: 'lower' },
      SIDES.map(([field, title, text]) => h('div', { class: 'column' }, changedCard(field, title, text, sets, cell))),
    ),
  ];
}

/** @param {string} field @param {string} title @param {string} text @param {any[]} sets @param {(set: string, question: any) => any} cell */
function changedCard(field, title, text, sets, cell) {
  const rows = sets.flatMap((one) =>
    one[field].map((/** @type {any} */ item) => [
      cell(one.set, item),
      ...(sets.length > 1 ? [one.set] : []),
      item.kind,
      percent(item.before),
      percent(item.after),
    ]),
  );
  const columns = ['Question', ...(sets.length > 1 ? ['Set'] : []), 'Kind', 'First', 'Second'];
  return h(
    'section',
    { class: 'card', 'aria-label': title },
    h('h2', {}, `${title} (${rows.length})`),
    h('p', { class: 'muted' }, text),
    rows.length
      ? h('div', { class: 'long' }, table(title, columns, rows, [columns.length - 2, columns.length - 1]))
      : h('p', { class: 'muted' }, 'None.'),
  );
}
