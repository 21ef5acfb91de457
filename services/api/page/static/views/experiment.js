// One experiment, polled: progress, methods, runs, and the results of the final runs that have succeeded.
// @ts-check

import { call, experimentPath } from '../api.js';
import { poll } from '../connection.js';
import { announce, fill, fillIfChanged, h, heading, notice, save } from '../dom.js';
import { problemBox } from '../parts/actions.js';
import { showFile, showHead, showMethods, showRuns } from '../parts/experiment_panels.js';
import {
  Curves,
  claimsTable,
  differencesTable,
  resultsTable,
  tuningTable,
  windowsTable,
} from '../parts/experiment_results.js';

const POLL_SECONDS = 2;

/** @type {import('../app.js').View} */
export function experimentView(box, { path }, signal) {
  const id = path[1];
  fill(box, heading(id), notice('loading', 'Loading the experiment …'));
  const view = layout();
  const curves = new Curves();
  fill(view.curves, curves.elements);
  signal.addEventListener('abort', () => curves.close());

  /** @type {any} */
  let shown = null;
  /** @type {any} */
  let results = null;
  /** Runs that the results are made of. */
  let of = '';
  const onproblem = (/** @type {any} */ problem) => fill(view.problem, problemBox(problem));
  const ondownload = async () => {
    try {
      const newest = await call(`${experimentPath(id)}/results`, { signal });
      const both = { experiment: shown, results: newest };
      save(`${id}-results.json`, 'application/json', `${JSON.stringify(both, null, 2)}\n`);
    } catch (error) {
      onproblem(error);
    }
  };
  const show = (/** @type {any} */ experiment) => {
    if (!shown) open(box, view, experiment);
    else if (shown.state !== experiment.state) announce(`${experiment.name} is ${experiment.state}`);
    shown = experiment;
    const onchanged = (/** @type {any} */ changed) => {
      fill(view.problem);
      show(changed);
    };
    showHead(view.head, experiment, { onchanged, onproblem, ondownload });
    showMethods(view.methods, experiment);
    showRuns(view.runs, experiment);
    fillIfChanged(view.tuning, [experiment.scores, experiment.chosen], () => tuningTable(experiment));
  };
  poll(
    POLL_SECONDS,
    signal,
    async () => {
      const experiment = await call(experimentPath(id), { signal });
      if (signal.aborted) return;
      show(experiment);
      const ended = experiment.runs.filter(
        (/** @type {any} */ run) => run.phase === 'final' && run.state === 'succeeded',
      );
      const now = ended.map((/** @type {any} */ run) => run.cell).join();
      if (now === of) return;
      if (now) results = await call(`${experimentPath(id)}/results`, { signal });
      if (signal.aborted) return;
      of = now;
      showResults(view, experiment, now ? results : null, curves);
    },
    (problem) => (shown ? onproblem(problem) : refused(box, id, problem)),
  );
}

/** @param {HTMLElement} box @param {string} id @param {any} problem */
function refused(box, id, problem) {
  fill(box, heading(id), problemBox(problem), h('p', {}, h('a', { href: '#/experiments' }, 'See all experiments')));
}

function layout() {
  const made = /** @type {Record<string, HTMLElement>} */ ({
    head: h('div', { class: 'run-head' }),
    problem: h('div'),
    methods: h('div'),
    results: h(
      'div',
      { class: 'parts' },
      notice('empty', 'No results yet.', 'They appear when the first final run has succeeded.'),
    ),
    curves: h('div', { class: 'charts', hidden: true }),
    findings: h('div', { class: 'parts' }),
    tuning: h('div', { class: 'parts' }),
    runs: h('div', { class: 'part' }),
    file: h('section', { class: 'card' }),
  });
  return made;
}

/** @param {HTMLElement} box @param {Record<string, HTMLElement>} view @param {any} experiment */
function open(box, view, experiment) {
  const card = (/** @type {string} */ title, /** @type {HTMLElement} */ content) =>
    h('section', { class: 'card part', 'aria-label': title }, h('h2', {}, title), content);
  const focused = box.contains(document.activeElement);
  fill(
    box,
    view.head,
    view.problem,
    card('Methods', view.methods),
    view.results,
    view.curves,
    view.findings,
    view.tuning,
    card('Runs', view.runs),
    view.file,
  );
  showFile(view.file, experiment);
  if (focused) queueMicrotask(() => box.querySelector('h1')?.focus({ preventScroll: true }));
}

/** @param {Record<string, HTMLElement>} view @param {any} experiment @param {any} results @param {Curves} curves */
function showResults(view, experiment, results, curves) {
  view.curves.hidden = !results;
  if (!results) return; // the empty notice stays
  fillIfChanged(view.results, results.methods, () => resultsTable(experiment, results));
  fillIfChanged(view.findings, results, () => [differencesTable(results), claimsTable(results), windowsTable(results)]);
  curves.draw(results);
}
