// The questions learned and forgotten: between two evaluations, or between two steps of a run's own.
// @ts-check

import { call, evaluationPath, runPath } from '../api.js';
import { choice, fill, h, heading, notice } from '../dom.js';
import { ago } from '../format.js';
import { problemBox } from '../parts/actions.js';
import { differencePanels, evaluationLink } from '../parts/evaluation_panels.js';

/** @typedef {{first: string, second: string}} Pair */

/** @type {import('../app.js').View} */
export async function compareEvaluationsView(box, { query }, signal) {
  const run = query.get('run');
  const of = run ? `&run=${encodeURIComponent(run)}` : '';
  const found = await loaded(box, 'Compare evaluations', () => call(`/v1/evaluations?limit=200${of}`, { signal }));
  if (!found) return;
  const items = found.items.filter((/** @type {any} */ one) => one.num_done);
  const label = (/** @type {any} */ one) => `${one.name}, ${ago(one.created_at)} (${one.id})`;
  compared(box, {
    title: 'Compare evaluations',
    crumb: h('a', { href: '#/evaluations' }, 'Evaluations'),
    options: items.map((/** @type {any} */ one) => [one.id, label(one)]),
    pair: { first: query.get('first') ?? items.at(1)?.id ?? '', second: query.get('second') ?? items.at(0)?.id ?? '' },
    few: 'Two evaluations with a judged question are needed.',
    remember: (pair) => `#/evaluations/compare?${new URLSearchParams({ ...pair, ...(run ? { run } : {}) })}`,
    ask: ({ first, second }) =>
      call(`${evaluationPath(first)}/difference?second=${encodeURIComponent(second)}`, { signal }),
    cell: (pair) => (set, item) => {
      const query = new URLSearchParams({ set, id: item.question_id });
      return h('a', { href: `${evaluationLink(pair.second)}?${query}` }, item.question_id);
    },
    none: 'They have no question in common: the names of the sets or the questions’ ids differ.',
  });
}

/** @type {import('../app.js').View} */
export async function runChangesView(box, { path, query }, signal) {
  const id = path[1];
  const title = 'Learned and forgotten';
  const found = await loaded(box, title, () => call(`${runPath(id)}/evaluations`, { signal }));
  if (!found) return;
  const steps = [...new Set(found.items.map((/** @type {any} */ one) => String(one.step)))];
  compared(box, {
    title,
    link: h(
      'a',
      { class: 'button', href: `#/evaluations?run=${encodeURIComponent(id)}` },
      'Evaluations of its weights',
    ),
    crumb: [h('a', { href: '#/' }, 'Runs'), ' / ', h('a', { href: `#/runs/${encodeURIComponent(id)}` }, id)],
    options: steps.map((step) => [step, step === '0' ? 'step 0, before training' : `step ${step}`]),
    pair: { first: query.get('first') ?? steps[0] ?? '', second: query.get('second') ?? steps.at(-1) ?? '' },
    few: 'Two of the run’s own evaluations are needed. The field evaluation.every_steps says when it evaluates.',
    remember: (pair) => `#/runs/${encodeURIComponent(id)}/changes?${new URLSearchParams({ ...pair })}`,
    ask: (pair) => call(`${runPath(id)}/evaluations/difference?${new URLSearchParams({ ...pair })}`, { signal }),
    cell: () => (_, item) => item.question_id,
    none: 'The two steps were evaluated on different sets.',
  });
}

/** @param {HTMLElement} box @param {string} title @param {() => Promise<any>} ask */
async function loaded(box, title, ask) {
  fill(box, heading(title), notice('loading', 'Loading evaluations …'));
  try {
    return await ask();
  } catch (error) {
    if (/** @type {any} */ (error).name !== 'AbortError') fill(box, heading(title), problemBox(error));
    return null;
  }
}

/**
 * @param {HTMLElement} box
 * @param {{title: string, crumb: any, link?: any, options: [string, string][], pair: Pair, few: string, none: string,
 *   remember: (pair: Pair) => string, ask: (pair: Pair) => Promise<any>,
 *   cell: (pair: Pair) => (set: string, question: any) => any}} what
 */
function compared(box, { title, crumb, link, options, pair, few, none, remember, ask, cell }) {
  const head = [
    h('p', { class: 'crumbs' }, crumb, ' / ', title),
    h('div', { class: 'title-row' }, heading(title), h('div', { class: 'actions' }, link)),
  ];
  const focused = box.contains(document.activeElement);
  if (options.length < 2) {
    fill(box, head, notice('empty', 'Nothing to compare yet.', few));
    return;
  }
  const result = h('div', { class: 'parts' });
  const filters = h('div', { class: 'filters' });
  const show = async () => {
    window.history.replaceState(null, '', remember(pair)); // so that the comparison can be shared as a link
    const asked = JSON.stringify(pair);
    try {
      const found = await ask(pair);
      if (asked !== JSON.stringify(pair)) return; // another choice since
      fill(result, found.sets.length ? differencePanels(found, cell({ ...pair })) : notice('empty', none));
    } catch (error) {
      if (/** @type {any} */ (error).name !== 'AbortError') fill(result, problemBox(error));
    }
  };
  const pick = (/** @type {'first' | 'second'} */ side, /** @type {string} */ label) => {
    const known = options.some(([value]) => value === pair[side]);
    const all = known ? options : /** @type {[string, string][]} */ ([[pair[side], pair[side]], ...options]);
    return choice(label, all, pair[side], (value) => {
      pair[side] = value;
      show();
    });
  };
  const draw = () => {
    const swap = () => {
      Object.assign(pair, { first: pair.second, second: pair.first });
      draw();
      show();
    };
    fill(
      filters,
      pick('first', 'First'),
      pick('second', 'Second'),
      h('button', { type: 'button', onclick: swap }, 'Swap'),
    );
  };
  draw();
  fill(box, head, filters, result);
  if (focused) box.querySelector('h1')?.focus({ preventScroll: true });
  fill(result, notice('loading', 'Comparing …'));
  show();
}
