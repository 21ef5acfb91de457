// One run, live. Everything that has a history comes from the event stream; services and queues are polled.
// @ts-check

import { call, runPath } from '../api.js';
import { connection, poll } from '../connection.js';
import { announce, fill, h, heading, notice, say } from '../dom.js';
import { hasEnded, problemBox } from '../parts/actions.js';
import { openFork } from '../parts/fork.js';
import { showProbe } from '../parts/probe.js';
import { makePanels, thinned } from '../parts/run_charts.js';
import {
  EventList,
  showCheckpoints,
  showHead,
  showLedger,
  showQueues,
  showServices,
  showTiles,
} from '../parts/run_panels.js';
import { scaleControls, scaleOf, scaleQuery, smooth } from '../parts/scale.js';
import { tryIt } from '../parts/try_it.js';
import { follow } from '../stream.js';

const POLL_SECONDS = 2;
/** The time left is estimated from the mean duration of this many steps. */
const RATE_STEPS = 20;
/** Shortest time between two redraws, so that a fast run does not keep the browser busy. */
const DRAW_MILLISECONDS = 400;

/** What the stream has sent so far. */
class History {
  constructor() {
    /** @type {Map<number, import('../parts/run_charts.js').Step>} */
    this.steps = new Map();
    /** @type {Map<string, import('../parts/run_charts.js').Evaluation>} */
    this.evaluations = new Map();
    this.published = 0;
    this.groups = /** @type {Record<string, number>} */ ({});
  }

  /** @param {import('../stream.js').RunEvent} event */
  take({ type, data }) {
    if (type === 'step') {
      this.steps.set(data.step, data); // a step that is trained again replaces the old one
      this.groups = data.groups;
    } else if (type === 'evaluation') this.evaluations.set(`${data.step}:${data.split}:${data.num_samples}`, data);
    else if (type === 'weights') this.published = data.version;
  }

  newest() {
    return this.steps.size ? Math.max(...this.steps.keys()) : 0;
  }

  /** Seconds per step at the current speed, if it is known. */
  pace() {
    const newest = [...this.steps.values()].slice(-RATE_STEPS).map((step) => step.metrics.seconds);
    const known = newest.filter(Number.isFinite);
    return known.length ? known.reduce((a, b) => a + b, 0) / known.length : undefined;
  }

  ordered() {
    return {
      steps: [...this.steps.values()].sort((a, b) => a.step - b.step),
      evaluations: [...this.evaluations.values()].sort((a, b) => a.step - b.step || a.at - b.at),
    };
  }
}

/** @type {import('../app.js').View} */
export async function runView(box, { path, query }, signal) {
  const id = path[1];
  fill(box, heading(id), notice('loading', 'Loading the run …'));
  const run = await firstAnswer(id, box, signal);
  if (!run || signal.aborted) return;
  const view = layout(run);
  const focused = box.contains(document.activeElement);
  fill(box, view.head, view.problem, view.probe, view.tiles, view.scale, view.width, view.charts, view.lower);

  const scale = scaleOf(query);
  const history = new History();
  const events = new EventList();
  fill(view.events, events.element, events.empty);
  const trial = tryIt(id, signal);
  fill(view.trial, trial.element);
  const panels = makePanels();
  fill(
    view.charts,
    panels.map((panel) => panel.chart.element),
  );
  signal.addEventListener('abort', () => {
    for (const panel of panels) panel.chart.close();
  });

  const onproblem = (/** @type {any} */ problem) => fill(view.problem, problemBox(problem));
  let shown = run;
  /** @type {any[]} */
  let checkpoints = [];
  const fork = (/** @type {number | undefined} */ step) =>
    openFork(
      shown,
      checkpoints.filter((one) => one.exists),
      step,
    );
  const onrun = (/** @type {any} */ now) => {
    if (now.state !== shown.state) announce(`${now.name} is ${now.state}`);
    shown = now;
    showHead(view.head, { ...now, step: Math.max(now.step, history.newest()) }, history.pace(), {
      canFork: checkpoints.some((one) => one.exists),
      onfork: () => fork(undefined),
      onchanged: (changed) => {
        fill(view.problem);
        onrun(changed);
      },
      onproblem,
    });
  };
  onrun(run);
  if (focused) box.querySelector('h1')?.focus({ preventScroll: true });
  const draw = () => {
    const { steps, evaluations } = history.ordered();
    const last = steps.at(-1);
    onrun(shown);
    const nothing = hasEnded(shown.state) && !last && !evaluations.length;
    view.tiles.hidden = view.scale.hidden = view.charts.hidden = nothing;
    showTiles(view.tiles, last, evaluations);
    showLedger(view.ledger, history.groups);
    const { points, width } = thinned(steps);
    say(view.width, width > 1 ? `Each point in the charts is the mean or maximum of ${width} steps.` : '');
    for (const panel of panels) {
      panel.chart.axes.log = scale.log;
      const series = panel.series(points, evaluations).map((one) => smoothed(one, scale.window));
      panel.chart.draw(series, `step ${last?.step}: ${panel.summary(last?.metrics ?? {})}`);
    }
  };
  fill(
    view.scale,
    scaleControls(scale, () => {
      const said = new URLSearchParams(scaleQuery(scale)).toString();
      window.history.replaceState(null, '', `#/runs/${encodeURIComponent(id)}${said ? `?${said}` : ''}`);
      draw();
    }),
  );
  draw();
  const drawSoon = throttled(draw, DRAW_MILLISECONDS);
  let refreshSoon = () => {};
  const checkpointsSoon = throttled(async () => {
    const answer = await call(`${runPath(id)}/checkpoints`, { signal }).catch(() => null); // retried at the next event
    if (!answer || signal.aborted) return;
    checkpoints = answer.items;
    showCheckpoints(view.checkpoints, checkpoints, fork);
    onrun(shown);
  }, DRAW_MILLISECONDS);
  checkpointsSoon();
  const probeSoon = throttled(() => showProbe(view.probeReport, shown, signal), DRAW_MILLISECONDS);
  if (run.config.probe) probeSoon();
  follow(
    id,
    signal,
    (news) => {
      for (const event of news) history.take(event);
      events.add(news);
      drawSoon();
      if (news.some((event) => event.type === 'state')) refreshSoon();
      if (run.config.probe && news.some((event) => ['probe', 'step', 'state'].includes(event.type))) probeSoon();
      if (news.some((event) => event.type === 'state' || event.type === 'checkpoint')) checkpointsSoon();
    },
    onproblem,
  );

  const refresh = async () => {
    const [now, services, queues] = await Promise.all([
      call(runPath(id), { signal }),
      call('/v1/services', { signal }),
      call(`/v1/queues?run_id=${encodeURIComponent(id)}`, { signal }),
    ]);
    if (signal.aborted) return;
    onrun(now);
    showServices(view.services, services.items, now, Math.max(history.published, 0));
    showQueues(view.queues, queues.items);
    trial.update(now, services.items);
  };
  refreshSoon = throttled(() => {
    refresh().catch(() => {});
  }, DRAW_MILLISECONDS);
  poll(POLL_SECONDS, signal, refresh, onproblem);
}

/** Only lines: bars and bands are parts of a whole. @param {import('../parts/chart.js').Series} series @param {number} window */
function smoothed(series, window) {
  return series.kind === 'lines' ? { ...series, y: smooth(series.y, window) } : series;
}

/** @param {string} id @param {HTMLElement} box @param {AbortSignal} signal */
async function firstAnswer(id, box, signal) {
  for (let failures = 1; !signal.aborted; failures += 1) {
    try {
      return await call(runPath(id), { signal });
    } catch (error) {
      const problem = /** @type {any} */ (error);
      if (signal.aborted) return null;
      if (problem.status === 0 || problem.status === 503) {
        await connection.down(failures, signal);
        continue;
      }
      fill(box, heading(id), problemBox(problem), h('p', {}, h('a', { href: '#/' }, 'See all runs')));
      return null;
    }
  }
  return null;
}

/** @param {any} run */
function layout(run) {
  const part = (/** @type {string} */ title, /** @type {HTMLElement[]} */ ...content) =>
    h('section', { class: 'card', 'aria-label': title }, h('h2', {}, title), content);
  const probeReport = h('div', { class: 'part' });
  const made = {
    head: h('div', { class: 'run-head' }),
    problem: h('div', {}),
    probeReport,
    probe: run.config.probe ? part('Probe', probeReport) : null,
    tiles: h('dl', { class: 'tiles' }),
    scale: h('div', { class: 'filters' }),
    width: h('p', { class: 'muted' }),
    charts: h('div', { class: 'charts' }),
    trial: h('div', {}),
    services: h('div', {}),
    queues: h('div', {}),
    ledger: h('p', { class: 'muted' }),
    checkpoints: h('div', {}),
    events: h('div', {}),
  };
  const column = (/** @type {HTMLElement[]} */ ...cards) => h('div', { class: 'column' }, cards);
  const lower = h(
    'div',
    { class: 'lower' },
    column(
      h('div', { class: 'use' }, part('Try it', made.trial)),
      part('Services', made.services),
      part('Events', made.events),
    ),
    column(
      part('Queues', made.queues, made.ledger),
      part('Checkpoints', made.checkpoints),
      h(
        'section',
        { class: 'card' },
        h(
          'details',
          {},
          h('summary', {}, 'Configuration'),
          h('pre', { tabindex: '0' }, JSON.stringify(run.config, null, 2)),
        ),
      ),
    ),
  );
  return { ...made, lower };
}

/** @param {() => void} act @param {number} milliseconds */
function throttled(act, milliseconds) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => {
      waiting = false;
      act();
    }, milliseconds);
  };
}
