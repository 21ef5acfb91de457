// The list of runs: state, progress, reward as a sparkline.
// @ts-check

import { call, stepsAfter } from '../api.js';
import { poll } from '../connection.js';
import { fill, h, heading, notice } from '../dom.js';
import { ago, fixed, percent } from '../format.js';
import { badge, problemBox, tagsOf, whyOf } from '../parts/actions.js';
import { addressOf, filterControls, filterOf, filterQuery, isFiltering, searchOf } from '../parts/run_filters.js';
import { Sparkline } from '../parts/sparkline.js';

const SPARK_POINTS = 120;

/** @typedef {{element: HTMLElement, update: (run: any) => void, close: () => void}} Row */

/** @type {import('../app.js').View} */
export async function runsView(box, address, signal) {
  const list = h('div', { class: 'runs' }, notice('loading', 'Loading runs …'));
  const more = h('div', { class: 'actions' });
  const filter = filterOf(address.query);
  let limit = 30;
  let wake = () => {};
  const ask = () => {
    window.history.replaceState(null, '', addressOf('', filterQuery(filter))); // so that it can be shared as a link
    table.href = addressOf('table', filterQuery(filter));
    wake();
  };
  const table = h('a', { class: 'button', href: addressOf('table', filterQuery(filter)) }, 'Table');
  fill(
    box,
    h(
      'div',
      { class: 'title-row' },
      heading('Runs'),
      h(
        'div',
        { class: 'actions' },
        table,
        h('a', { class: 'button primary operate', href: '#/start' }, 'Start a run'),
      ),
    ),
    filterControls(filter, ask),
    list,
    more,
  );

  /** @type {Map<string, Row>} */
  const rows = new Map();
  signal.addEventListener('abort', () => {
    for (const row of rows.values()) row.close();
  });
  let asked = 0;
  const load = async () => {
    const own = ++asked;
    const query = searchOf(filter);
    query.set('limit', String(limit));
    for (const metric of ['reward_mean', 'accuracy']) query.append('metric', metric);
    const page = await call(`/v1/runs?${query}`, { signal });
    if (signal.aborted || own !== asked) return; // a later request is in progress
    render(list, rows, page.items, filter, signal);
    fill(
      more,
      page.next_cursor && limit < 200
        ? h(
            'button',
            {
              type: 'button',
              onclick: () => {
                limit = Math.min(200, limit + 30);
                ask();
              },
            },
            'Show more',
          )
        : null,
    );
  };
  wake = () => {
    load().catch(() => {});
  };
  poll(2, signal, load, (problem) => fill(list, problemBox(problem)));
}

/**
 * @param {HTMLElement} list
 * @param {Map<string, Row>} rows
 * @param {any[]} runs
 * @param {import('../parts/run_filters.js').Filter} filter
 * @param {AbortSignal} signal
 */
function render(list, rows, runs, filter, signal) {
  const ids = new Set(runs.map((run) => run.id));
  for (const [id, row] of rows) {
    if (ids.has(id)) continue;
    row.close();
    rows.delete(id);
  }
  if (!runs.length) {
    fill(
      list,
      isFiltering(filter)
        ? notice('empty', 'No runs match the filter.')
        : notice('empty', 'No runs yet.', 'Start one here, or with ', h('code', {}, 'turnout demo'), '.'),
    );
    return;
  }
  const elements = runs.map((run) => {
    const row = rows.get(run.id) ?? makeRow(run, signal);
    rows.set(run.id, row);
    row.update(run);
    return row.element;
  });
  if (elements.some((element, i) => list.children[i] !== element) || list.children.length !== elements.length)
    fill(list, elements);
}

/** @param {any} run @param {AbortSignal} signal @returns {Row} */
function makeRow(run, signal) {
  const spark = new Sparkline(`Reward of ${run.name}`);
  const state = h('div', { class: 'run-state' });
  const why = h('p', { class: 'run-why reason bad' });
  const progress = h('progress', { max: run.num_steps, 'aria-label': `Steps of ${run.name}` });
  const steps = h('span', { class: 'run-steps' });
  const reward = h('span', { class: 'run-reward' });
  const about = h('p', { class: 'run-about' });
  const link = h('a', { href: `#/runs/${encodeURIComponent(run.id)}` }, run.name);
  const element = h(
    'article',
    { class: 'card run', dataset: { run: run.id } },
    h('div', { class: 'run-name' }, h('h2', {}, link), about),
    state,
    h('div', { class: 'run-progress' }, progress, steps),
    h('div', { class: 'run-spark' }, spark.element, reward),
    why,
  );
  /** @type {number[]} */
  let values = [];
  let last = 0;
  let shown = '';
  const learn = async (/** @type {number} */ step) => {
    if (step < last) [values, last] = [[], 0]; // trained again from an earlier checkpoint
    const from = last;
    last = step;
    const items = await stepsAfter(run.id, from || Math.max(0, step - 2000), signal).catch(() => {
      last = from; // retried in the next round
      return [];
    });
    values.push(...items.map((item) => item.metrics.reward_mean).filter(Number.isFinite));
    spark.draw(thin(values));
  };
  let newest = run;
  let isNear = false;
  // A sparkline needs the run's steps, so only rows near the window ask for them.
  const watcher = new IntersectionObserver(
    (entries) => {
      isNear = entries.at(-1)?.isIntersecting ?? false;
      if (isNear && newest.step !== last) learn(newest.step);
    },
    { rootMargin: '100px' },
  );
  watcher.observe(element);
  return {
    element,
    close: () => watcher.disconnect(),
    update: (now) => {
      newest = now;
      if (link.textContent !== now.name) fill(link, now.name);
      progress.value = now.step;
      fill(steps, `${now.step} of ${now.num_steps} steps`);
      fill(
        about,
        [now.id, now.objective, `created ${ago(now.created_at)}`].map((text) => h('span', {}, text)),
        tagsOf(now),
      );
      const accuracy = now.metrics.accuracy;
      fill(
        reward,
        Number.isFinite(now.metrics.reward_mean)
          ? [h('strong', {}, fixed(now.metrics.reward_mean)), ` reward · ${percent(accuracy)} correct`]
          : 'no steps yet',
      );
      const because = whyOf(now);
      if (shown !== now.state + because) {
        shown = now.state + because;
        const failed = now.state === 'failed';
        fill(state, badge(now.state), because && !failed ? h('p', { class: 'reason' }, because) : null);
        fill(why, failed ? because : '');
      }
      if (isNear && now.step !== last) learn(now.step);
    },
  };
}

/** Means of equal spans, so that a long run is drawn as quickly as a short one. @param {number[]} values */
function thin(values) {
  const width = Math.ceil(values.length / SPARK_POINTS);
  if (width <= 1) return values;
  const means = [];
  for (let start = 0; start < values.length; start += width) {
    const part = values.slice(start, start + width);
    means.push(part.reduce((sum, value) => sum + value, 0) / part.length);
  }
  return means;
}
