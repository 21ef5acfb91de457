// Several runs on one plot, against the step or the time since each one's start.
// @ts-check

import { call, runPath, stepsAfter } from '../api.js';
import { poll } from '../connection.js';
import { choice, fill, fillIfChanged, h, heading, notice, table } from '../dom.js';
import { duration, fixed } from '../format.js';
import { badge, problemBox } from '../parts/actions.js';
import { Chart, DASHES, SYMBOLS } from '../parts/chart.js';
import { differencesOf } from '../parts/configuration.js';
import { METRICS } from '../parts/metrics.js';
import { scaleControls, scaleOf, scaleQuery, smooth } from '../parts/scale.js';

const MEASURES = /** @type {[string, string][]} */ ([
  ['evaluation:accuracy', 'Evaluation accuracy (avg@k)'],
  ['evaluation:pass_at_k', 'Evaluation pass@k'],
  ...[...METRICS.values()].map(({ name, title, unit }) => [
    `step:${name}`,
    unit && unit !== 'share' ? `${title}, ${unit}` : title,
  ]),
]);
const MOST = 8;

/** @typedef {{run: any, steps: any[], evaluations: any[]}} Loaded */

/** @type {import('../app.js').View} */
export async function compareView(box, { query }, signal) {
  const chosen = new Set((query.get('runs') ?? '').split(',').filter(Boolean).slice(0, MOST));
  const setting = {
    measure: query.get('y') ?? 'step:reward_mean',
    x: query.get('x') ?? 'step',
    baseline: query.get('baseline') ?? '',
    ...scaleOf(query),
  };
  /** @type {Map<string, Loaded>} */
  const loaded = new Map();
  const [picker, problem, result, summary, differences, baselines] = [
    h('div', { class: 'picker' }, notice('loading', 'Loading runs …')),
    h('div'),
    h('div'),
    h('div'),
    h('div'),
    h('div'),
  ];
  const remember = () => {
    const next = new URLSearchParams({
      runs: [...chosen].join(','),
      y: setting.measure,
      x: setting.x,
      ...(chosen.has(setting.baseline) ? { baseline: setting.baseline } : {}),
      ...scaleQuery(setting),
    });
    window.history.replaceState(null, '', `#/compare?${next}`); // so that the comparison can be shared as a link
  };
  const changed = () => {
    remember();
    show();
  };
  fill(
    box,
    heading('Compare runs'),
    problem,
    h(
      'div',
      { class: 'compare' },
      h('section', { class: 'card', 'aria-label': 'Runs to compare' }, h('h2', {}, 'Runs'), picker),
      h(
        'div',
        { class: 'compare-main' },
        h(
          'div',
          { class: 'filters' },
          choice('Show', MEASURES, setting.measure, (value) => {
            setting.measure = value;
            changed();
          }),
          choice(
            'Against',
            [
              ['step', 'training step'],
              ['time', 'wall-clock time'],
            ],
            setting.x,
            (value) => {
              setting.x = value;
              changed();
            },
          ),
          scaleControls(setting, changed),
          baselines,
        ),
        result,
        summary,
        differences,
      ),
    ),
  );

  /** @type {Chart | null} */
  let chart = null;
  signal.addEventListener('abort', () => chart?.close());
  const show = () => {
    const runs = [...chosen].flatMap((id) => loaded.get(id) ?? []);
    fillIfChanged(baselines, [setting.baseline, runs.map(({ run }) => [run.id, run.name])], () => {
      const names = runs.map(({ run }) => /** @type {[string, string]} */ ([run.id, labelOf(run)]));
      return choice('Baseline', [['', 'none'], ...names], setting.baseline, (value) => {
        setting.baseline = value;
        changed();
      });
    });
    if (!runs.length) {
      chart?.close();
      chart = null;
      fill(summary);
      fillIfChanged(differences, [], () => null);
      fill(
        result,
        notice('empty', chosen.size ? 'Loading …' : 'Choose one or more runs.', 'They are drawn on one chart.'),
      );
      return;
    }
    const title = MEASURES.find(([value]) => value === setting.measure)?.[1] ?? setting.measure;
    const axes = { xTitle: setting.x === 'step' ? 'training step' : 'minutes since the run’s start', zero: false };
    if (!chart || chart.title !== title || chart.axes.xTitle !== axes.xTitle) {
      chart?.close();
      chart = new Chart(title, 'Each run has its own colour, dash and marker.', axes);
      chart.element.classList.add('tall');
      fill(result, chart.element);
    }
    chart.axes.log = setting.log;
    const series = runs.map((one) => courseOf(one, setting));
    chart.draw(series, series.map((one) => `${one.name} ${fixed(one.y.at(-1))}`).join(', '));
    fill(summary, summaryTable(runs, series, setting.baseline));
    const configured = runs.map(({ run }) => ({ id: run.id, name: run.name, config: run.config }));
    fillIfChanged(differences, configured, () => differencesOf(configured));
  };

  show();
  poll(
    4,
    signal,
    async () => {
      const page = await call('/v1/runs?limit=100&without_tag=hidden&metric=reward_mean', { signal });
      if (signal.aborted) return;
      const listed = new Set(page.items.map((/** @type {any} */ run) => run.id));
      const others = [...loaded.values()]
        .map(({ run }) => run)
        .filter((run) => chosen.has(run.id) && !listed.has(run.id));
      showPicker(picker, [...others, ...page.items], chosen, async (id, on) => {
        if (on) chosen.add(id);
        else chosen.delete(id);
        changed();
        if (on) await load(id, loaded, signal).then(show, (error) => fill(problem, problemBox(error)));
      });
      const results = await Promise.allSettled([...chosen].map((id) => load(id, loaded, signal)));
      const failed = /** @type {PromiseRejectedResult | undefined} */ (
        results.find((one) => one.status === 'rejected')
      );
      fill(problem, failed ? problemBox(failed.reason) : null);
      show();
    },
    (error) => fill(problem, problemBox(error)),
  );
}

/** @param {string} id @param {Map<string, Loaded>} loaded @param {AbortSignal} signal */
async function load(id, loaded, signal) {
  const before = loaded.get(id);
  const run = await call(runPath(id), { signal });
  if (before && before.run.step === run.step && before.run.state === run.state) return;
  const old = before && before.run.step <= run.step ? before.steps : [];
  const [news, evaluations] = await Promise.all([
    stepsAfter(id, old.at(-1)?.step ?? 0, signal),
    call(`${runPath(id)}/evaluations`, { signal }),
  ]);
  loaded.set(id, { run, steps: [...old, ...news], evaluations: evaluations.items });
}

/**
 * @param {HTMLElement} picker
 * @param {any[]} runs
 * @param {Set<string>} chosen
 * @param {(id: string, on: boolean) => void} onchange
 */
function showPicker(picker, runs, chosen, onchange) {
  const says = runs.map((run) => run.id + run.state).join();
  if (picker.dataset.says === says) return;
  picker.dataset.says = says;
  if (!runs.length) return fill(picker, notice('empty', 'No runs yet.'));
  const focused = /** @type {any} */ (document.activeElement)?.value;
  fill(
    picker,
    runs.map((run) =>
      h(
        'label',
        { class: 'pick' },
        h('input', {
          type: 'checkbox',
          value: run.id,
          checked: chosen.has(run.id),
          onchange: (/** @type {any} */ event) => {
            if (event.target.checked && chosen.size >= MOST) event.target.checked = false;
            else onchange(run.id, event.target.checked);
          },
        }),
        h('span', {}, run.name, h('small', {}, run.id), badge(run.state)),
      ),
    ),
  );
  if (focused)
    /** @type {HTMLElement | null} */ (picker.querySelector(`input[value="${CSS.escape(focused)}"]`))?.focus();
}

/**
 * @param {Loaded} loaded
 * @param {{measure: string, x: string, window: number, baseline: string}} setting
 * @returns {import('../parts/chart.js').Series}
 */
function courseOf({ run, steps, evaluations }, setting) {
  const [source, metric] = setting.measure.split(':');
  const index = styleOf(run.id);
  const sets = run.config?.data.validation;
  const main = Array.isArray(sets) ? sets[0].name : 'validation';
  const rows =
    source === 'step'
      ? steps.map((s) => ({ step: s.step, at: s.at, value: s.metrics[metric] ?? null }))
      : evaluations.filter((e) => e.split === main).map((e) => ({ step: e.step, at: e.at, value: e[metric] }));
  const start = run.started_at ?? run.created_at;
  const values = rows.map((row) => row.value);
  return {
    name: labelOf(run),
    x: rows.map((row) => (setting.x === 'step' ? row.step : (row.at - start) / 60)),
    y: source === 'step' ? smooth(values, setting.window) : values,
    kind: source === 'step' ? 'lines' : 'points',
    color: index,
    dash: DASHES[index % DASHES.length],
    symbol: SYMBOLS[index % SYMBOLS.length],
    width: 2,
    hover: '%{y:.4~g}',
    ...(run.id === setting.baseline ? { ink: '--muted', dash: 'dash', width: 1.5 } : {}),
  };
}

/** @param {any} run */
function labelOf(run) {
  return `${run.name} (${run.id.slice(-4)})`;
}

/** @type {string[]} */
const styles = [];
/** A run keeps its colour while others come and go. @param {string} id */
function styleOf(id) {
  if (!styles.includes(id)) styles.push(id);
  return styles.indexOf(id);
}

/** @param {Loaded[]} runs @param {import('../parts/chart.js').Series[]} series @param {string} baseline id of the run to which the others are compared */
function summaryTable(runs, series, baseline) {
  const known = series.map((one) => one.y.filter((value) => value !== null));
  const figures = known.map((values) => [
    values[0],
    values.at(-1),
    values.length ? values.reduce((a, b) => Math.max(a, b)) : undefined,
  ]);
  const base = figures[runs.findIndex(({ run }) => run.id === baseline)];
  return h(
    'section',
    { class: 'card', 'aria-label': 'Summary' },
    table(
      'Summary of the compared runs',
      ['Run', 'State', 'Objective', 'Steps', 'First', 'Last', 'Highest', 'Time'],
      runs.map(({ run }, i) => {
        const end = run.finished_at ?? Date.now() / 1000;
        return [
          h('a', { href: `#/runs/${encodeURIComponent(run.id)}` }, series[i].name),
          run.state,
          run.objective,
          `${run.step} of ${run.num_steps}`,
          ...figures[i].map((value, j) => figureOf(value, run.id === baseline ? undefined : base?.[j])),
          run.started_at ? duration(end - run.started_at) : '–',
        ];
      }),
      [3, 4, 5, 6, 7],
    ),
  );
}

/** A figure with its difference to the baseline's. @param {number | undefined} value @param {number | undefined} base */
function figureOf(value, base) {
  if (value === undefined || base === undefined) return fixed(value);
  return [fixed(value), h('small', { class: 'difference' }, `${value > base ? '+' : ''}${fixed(value - base)}`)];
}
