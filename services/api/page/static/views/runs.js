// The list of runs: state, progress, reward as a sparkline.
// @ts-check

import { call, stepsAfter } from '../api.js';
import { poll } from '../connection.js';
import { choice, fill, h, heading, notice } from '../dom.js';
import { ago, fixed, percent } from '../format.js';
import { badge, problemBox, tagsOf, whyOf } from '../parts/actions.js';
import { Sparkline } from '../parts/sparkline.js';

const STATES = ['queued', 'starting', 'running', 'paused', 'stopping', 'stopped', 'succeeded', 'failed'];
const SPARK_POINTS = 120;

/** @typedef {{element: HTMLElement, update: (run: any) => void, close: () => void}} Row */

/** @type {import('../app.js').View} */
export async function runsView(box, address, signal) {
  const list = h('div', { class: 'runs' }, notice('loading', 'Loading runs …'));
  const more = h('div', { class: 'actions' });
  const filter = {
    state: address.query.get('state') ?? '',
    name: address.query.get('name') ?? '',
    config: address.query.get('config') ?? '',
    tag: address.query.get('tag') ?? '',
    limit: 30,
  };
  let wake = () => {};
  const ask = () => {
    const said = new URLSearchParams(
      Object.entries({ state: filter.state, name: filter.name, config: filter.config, tag: filter.tag }).filter(
        ([, text]) => text,
      ),
    );
    window.history.replaceState(null, '', `#/${said.size ? `?${said}` : ''}`); // so that it can be shared as a link
    wake();
  };
  const input = (/** @type {'name' | 'config' | 'tag'} */ field, /** @type {string} */ placeholder) =>
    h('input', {
      type: 'search',
      name: field,
      placeholder,
      value: filter[field],
      oninput: (/** @type {any} */ event) => {
        filter[field] = event.target.value;
        ask();
      },
    });
  fill(
    box,
    h(
      'div',
      { class: 'title-row' },
      heading('Runs'),
      h('a', { class: 'button primary', href: '#/start' }, 'Start a run'),
    ),
    h(
      'div',
      { class: 'filters' },
      choice(
        'State',
        [['', 'all'], ...STATES.map((s) => /** @type {[string, string]} */ ([s, s]))],
        filter.state,
        (value) => {
          filter.state = value;
          ask();
        },
      ),
      h('label', { class: 'field' }, h('span', {}, 'Name contains'), input('name', '')),
      h(
        'label',
        { class: 'field config' },
        h('span', {}, 'Configuration has'),
        input('config', 'optimizer.learning_rate=1e-6'),
      ),
      h('label', { class: 'field' }, h('span', {}, 'Tagged'), input('tag', '')),
    ),
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
    const query = new URLSearchParams({ limit: String(filter.limit) });
    if (filter.state) query.set('state', filter.state);
    if (filter.name) query.set('name', filter.name);
    for (const setting of settingsOf(filter.config)) query.append('config', setting);
    for (const tag of filter.tag.split(/[\s,]+/).filter(Boolean)) query.append('tag', tag);
    const page = await call(`/v1/runs?${query}`, { signal });
    if (signal.aborted || own !== asked) return; // a later request is in progress
    render(list, rows, page.items, filter, signal);
    fill(
      more,
      page.next_cursor && filter.limit < 200
        ? h(
            'button',
            {
              type: 'button',
              onclick: () => {
                filter.limit = Math.min(200, filter.limit + 30);
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

/** The complete field=value terms of a search; a term that is still being typed changes nothing. @param {string} text */
function settingsOf(text) {
  return text.split(/\s+/).filter((term) => /^\w+(\.\w+)*=[^[{]/.test(term));
}

/**
 * @param {HTMLElement} list
 * @param {Map<string, Row>} rows
 * @param {any[]} runs
 * @param {{state: string, name: string, config: string, tag: string}} filter
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
      filter.state || filter.name || filter.config || filter.tag
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
