// One run, live. Everything that has a history comes from the event stream; services and queues are asked for.
// @ts-check
import { badge, buttons, hasEnded, problemBox } from './actions.js';
import { call, runPath } from './api.js';
import { connection, poll } from './connection.js';
import { announce, fill, h, heading, notice } from './dom.js';
import { duration } from './format.js';
import { makePanels } from './run_charts.js';
import { EventList, showQueues, showServices, showTiles } from './run_panels.js';
import { follow } from './stream.js';

const POLL_SECONDS = 2;
/** Shortest time between two drawings, so that a fast run does not keep the browser busy. */
const DRAW_MILLISECONDS = 400;

/** What the stream has told so far. */
class History {
  constructor() {
    /** @type {Map<number, import('./run_charts.js').Step>} */
    this.steps = new Map();
    /** @type {Map<string, import('./run_charts.js').Evaluation>} */
    this.evaluations = new Map();
    this.published = 0;
    this.groups = /** @type {Record<string, number>} */ ({});
  }

  /** @param {import('./stream.js').RunEvent} event */
  take({ type, data }) {
    if (type === 'step') {
      this.steps.set(data.step, data); // a step that is trained again replaces the old one
      this.groups = data.groups;
    } else if (type === 'evaluation') this.evaluations.set(`${data.step}:${data.split}:${data.num_samples}`, data);
    else if (type === 'weights') this.published = data.version;
  }

  ordered() {
    return {
      steps: [...this.steps.values()].sort((a, b) => a.step - b.step),
      evaluations: [...this.evaluations.values()].sort((a, b) => a.step - b.step || a.at - b.at),
    };
  }
}

/** @type {import('./app.js').View} */
export async function runView(box, { path }, signal) {
  const id = path[1];
  fill(box, heading(id), notice('loading', 'Loading the run …'));
  const run = await firstAnswer(id, box, signal);
  if (!run || signal.aborted) return;
  const view = layout(run);
  const focused = box.contains(document.activeElement);
  fill(box, view.head, view.problem, view.tiles, view.charts, view.lower);

  const history = new History();
  const events = new EventList();
  fill(view.events, events.element, events.empty);
  const panels = makePanels();
  fill(
    view.charts,
    panels.map((panel) => panel.chart.element),
  );
  signal.addEventListener('abort', () => panels.forEach((panel) => panel.chart.close()));

  const onproblem = (/** @type {any} */ problem) => fill(view.problem, problemBox(problem));
  let shown = run;
  const onrun = (/** @type {any} */ now) => {
    if (now.state !== shown.state) announce(`${now.name} is ${now.state}`);
    shown = now;
    showHead(
      view.head,
      now,
      (changed) => {
        fill(view.problem);
        onrun(changed);
      },
      onproblem,
    );
  };
  onrun(run);
  if (focused) box.querySelector('h1')?.focus({ preventScroll: true });
  const draw = () => {
    const { steps, evaluations } = history.ordered();
    const last = steps.at(-1);
    showTiles(view.tiles, last, evaluations);
    showLedger(view.ledger, history.groups);
    for (const panel of panels)
      panel.chart.draw(panel.series(steps, evaluations), `step ${last?.step}: ${panel.summary(last?.metrics ?? {})}`);
  };
  draw();
  const drawSoon = throttled(draw, DRAW_MILLISECONDS);
  let refreshSoon = () => {};
  follow(
    id,
    signal,
    (news) => {
      for (const event of news) history.take(event);
      events.add(news);
      drawSoon();
      if (news.some((event) => event.type === 'state' || event.type === 'step')) refreshSoon();
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
  };
  refreshSoon = throttled(() => {
    refresh().catch(() => {});
  }, DRAW_MILLISECONDS);
  poll(POLL_SECONDS, signal, refresh, onproblem);
}

/** @param {string} id @param {HTMLElement} box @param {AbortSignal} signal */
async function firstAnswer(id, box, signal) {
  for (let failures = 0; !signal.aborted; failures += 1) {
    try {
      return await call(runPath(id), { signal });
    } catch (error) {
      const problem = /** @type {any} */ (error);
      if (signal.aborted) return null;
      if (problem.status === 0 || problem.status === 503) {
        await connection.down(Math.min(2 ** failures, 10), signal);
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
  const made = {
    head: h('div', { class: 'run-head' }),
    problem: h('div', {}),
    tiles: h('dl', { class: 'tiles' }),
    charts: h('div', { class: 'charts' }),
    services: h('div', {}),
    queues: h('div', {}),
    ledger: h('p', { class: 'muted' }),
    events: h('div', {}),
  };
  const lower = h(
    'div',
    { class: 'lower' },
    part('Services', made.services),
    part('Queues', made.queues, made.ledger),
    part('Events', made.events),
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
  );
  return { ...made, lower };
}

/**
 * The heading with state and buttons; rebuilt only when it says something new, so that the focus stays where it is.
 * @param {HTMLElement} head
 * @param {any} run
 * @param {(run: any) => void} onchanged
 * @param {(problem: any) => void} onproblem
 */
function showHead(head, run, onchanged, onproblem) {
  const says = JSON.stringify([run.state, run.reason, run.desired]);
  if (head.dataset.says !== says) {
    const focused = head.contains(document.activeElement) ? document.activeElement?.tagName : null;
    head.dataset.says = says;
    const id = encodeURIComponent(run.id);
    const asked =
      run.desired === 'paused' && ['starting', 'running'].includes(run.state) ? 'pausing after this step' : '';
    fill(
      head,
      h('p', { class: 'crumbs' }, h('a', { href: '#/' }, 'Runs'), ' / ', run.id),
      h(
        'div',
        { class: 'title-row' },
        heading(run.name, ' '),
        badge(run.state),
        h(
          'div',
          { class: 'actions' },
          buttons(run, onchanged, onproblem),
          h('a', { class: 'button', href: `#/runs/${id}/samples` }, 'Samples'),
          h('a', { class: 'button', href: `#/compare?runs=${id}` }, 'Compare'),
        ),
      ),
      asked || run.reason
        ? h(
            'p',
            { class: run.state === 'failed' ? 'reason bad' : 'reason' },
            [asked, run.reason].filter(Boolean).join(' · '),
          )
        : null,
      h(
        'div',
        { class: 'run-progress wide' },
        h('progress', { max: run.num_steps, 'aria-label': 'Steps' }),
        h('span', { class: 'run-steps' }),
      ),
    );
    // A button that was pressed may be gone; the heading takes the focus, so that a keyboard is not thrown to the top.
    if (focused)
      /** @type {HTMLElement} */ (
        focused === 'H1' ? head.querySelector('h1') : (head.querySelector('button') ?? head.querySelector('h1'))
      ).focus();
  }
  /** @type {any} */ (head.querySelector('progress')).value = run.step;
  const end = hasEnded(run.state) ? run.finished_at : Date.now() / 1000;
  const took = run.started_at ? ` · ${duration(end - run.started_at)}` : '';
  fill(
    /** @type {Element} */ (head.querySelector('.run-steps')),
    `step ${run.step} of ${run.num_steps} · ${run.objective}${took}`,
  );
}

/** @param {Element} place @param {Record<string, number>} groups */
function showLedger(place, groups) {
  const parts = Object.entries(groups).map(
    ([name, count]) => `${name.replace('dropped_', 'dropped: ').replaceAll('_', ' ')} ${count}`,
  );
  fill(place, parts.length ? `Groups so far: ${parts.join(', ')}.` : '');
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
