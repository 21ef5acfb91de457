// One evaluation, polled: progress, results with intervals, and every question with some of its samples.
// @ts-check

import { call, evaluationPath } from '../api.js';
import { poll } from '../connection.js';
import { announce, fill, fillIfChanged, h, heading, notice } from '../dom.js';
import { problemBox } from '../parts/actions.js';
import { Questions } from '../parts/evaluated_questions.js';
import { evaluationLink, isGoing, resultTables, SOLVED, showHead } from '../parts/evaluation_panels.js';

const POLL_SECONDS = 2;
/** All questions are read again, so not every time that one is judged. */
const QUESTIONS_SECONDS = 6;

/** @type {import('../app.js').View} */
export function evaluationView(box, { path, query }, signal) {
  const id = path[1];
  fill(box, heading(id), notice('loading', 'Loading the evaluation …'));
  const view = { head: h('div', { class: 'run-head' }), problem: h('div'), results: h('div', { class: 'part' }) };
  const questions = new Questions(id, query, signal, () => {
    const said = new URLSearchParams(questions.query()).toString();
    window.history.replaceState(null, '', evaluationLink(id) + (said ? `?${said}` : ''));
  });
  /** @type {any} */
  let shown = null;
  const read = { done: -1, at: 0 };
  const onproblem = (/** @type {any} */ problem) => fill(view.problem, problemBox(problem));
  const show = (/** @type {any} */ evaluation) => {
    if (!shown) open(box, view, questions.element, evaluation);
    else if (shown.state !== evaluation.state) announce(`${evaluation.name} is ${evaluation.state}`);
    shown = evaluation;
    fill(view.problem);
    showHead(view.head, evaluation, { onchanged: show, onproblem });
    fillIfChanged(view.results, evaluation.results, () =>
      evaluation.results.length
        ? [
            h('p', { class: 'muted' }, `Means over questions with their 95% intervals. ${SOLVED}`),
            resultTables(evaluation.results),
          ]
        : h('p', { class: 'muted' }, isGoing(evaluation.state) ? 'No question has been judged yet.' : 'None.'),
    );
  };
  poll(
    POLL_SECONDS,
    signal,
    async () => {
      if (shown && !isGoing(shown.state) && read.done === shown.num_done) return;
      const evaluation = await call(evaluationPath(id), { signal });
      if (signal.aborted) return;
      show(evaluation);
      const waits = isGoing(evaluation.state) && Date.now() - read.at < QUESTIONS_SECONDS * 1000;
      if (evaluation.num_done === read.done || waits) return;
      const items = await allQuestions(id, signal);
      if (signal.aborted) return;
      Object.assign(read, { done: evaluation.num_done, at: Date.now() });
      questions.take(items);
    },
    (problem) => (shown ? onproblem(problem) : refused(box, id, problem)),
  );
}

/** @param {HTMLElement} box @param {string} id @param {any} problem */
function refused(box, id, problem) {
  fill(box, heading(id), problemBox(problem), h('p', {}, h('a', { href: '#/evaluations' }, 'See all evaluations')));
}

/** @param {HTMLElement} box @param {Record<string, HTMLElement>} view @param {HTMLElement} questions @param {any} evaluation */
function open(box, view, questions, evaluation) {
  const card = (/** @type {string} */ title, /** @type {HTMLElement} */ content) =>
    h('section', { class: 'card part', 'aria-label': title }, h('h2', {}, title), content);
  const focused = box.contains(document.activeElement);
  fill(
    box,
    view.head,
    view.problem,
    card('Results', view.results),
    card('Questions', questions),
    h(
      'section',
      { class: 'card' },
      h(
        'details',
        {},
        h('summary', {}, 'Request'),
        h('pre', { tabindex: '0' }, JSON.stringify(evaluation.request, null, 2)),
      ),
    ),
  );
  if (focused) queueMicrotask(() => box.querySelector('h1')?.focus({ preventScroll: true }));
}

/** @param {string} id @param {AbortSignal} signal */
async function allQuestions(id, signal) {
  const items = [];
  for (let cursor = ''; cursor !== null; ) {
    const page = await call(`${evaluationPath(id)}/questions?limit=1000${cursor ? `&cursor=${cursor}` : ''}`, {
      signal,
    });
    items.push(...page.items);
    cursor = page.next_cursor;
  }
  return items;
}
