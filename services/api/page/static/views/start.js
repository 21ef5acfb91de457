// Start a run from a run file: a shipped one or the user's own text. The API checks every field.
// @ts-check

import { call, Problem, requestKey } from '../api.js';
import { poll } from '../connection.js';
import { announce, choice, fill, h, heading } from '../dom.js';
import { noticesOf, problemBox } from '../parts/actions.js';

const EMPTY = 'name: my-run\nmodel:\n  path: \ndata:\n  train: \ntraining:\n  steps: 100\n';

/** @type {import('../app.js').View} */
export async function startView(box, _address, signal) {
  const text = h('textarea', {
    id: 'run-file',
    name: 'run-file',
    spellcheck: 'false',
    autocapitalize: 'off',
    autocomplete: 'off',
    rows: '24',
    'aria-describedby': 'run-file-help',
  });
  const result = h('div', { class: 'result', 'aria-live': 'polite' });
  const shipped = h('div', { class: 'filters' });
  let key = requestKey();
  const idle = () =>
    fill(result, h('p', { class: 'muted' }, 'The API checks every field before anything starts. Errors appear here.'));
  text.addEventListener('input', () => {
    key = requestKey();
  });
  text.value = EMPTY;
  idle();

  const busy = (/** @type {boolean} */ on) =>
    form.querySelectorAll('button').forEach((/** @type {any} */ button) => {
      button.disabled = on;
    });
  /** @param {(config: any, notices: string[]) => Promise<void>} then */
  const check = async (then) => {
    busy(true);
    text.removeAttribute('aria-invalid');
    try {
      const verdict = await call('/v1/run-files/check', { method: 'POST', body: { text: text.value }, signal });
      if (verdict.problem) throw new Problem(verdict.problem);
      await then(verdict.config, verdict.notices);
    } catch (error) {
      if (signal.aborted) return;
      const problem = /** @type {any} */ (error);
      text.setAttribute('aria-invalid', 'true');
      fill(result, problemBox(problem), problem.field ? fieldButton(text, problem.field) : null);
    } finally {
      busy(false);
    }
  };
  const start = (path = '/v1/runs') =>
    check(async (config) => {
      const headers = { 'Idempotency-Key': path + key }; // the same text may be probed and then started
      const run = await call(path, { method: 'POST', body: config, headers, signal });
      announce(`${run.name} is ${run.state}`);
      location.hash = `#/runs/${encodeURIComponent(run.id)}`;
    });
  const form = h(
    'form',
    {
      class: 'start',
      onsubmit: (/** @type {Event} */ event) => {
        event.preventDefault();
        start();
      },
    },
    h(
      'div',
      { class: 'start-text' },
      h('label', { for: 'run-file' }, 'Run file, YAML or JSON'),
      text,
      h(
        'p',
        { class: 'muted', id: 'run-file-help' },
        'Relative paths are resolved from the services’ working folder. docs/configuration.md lists every field.',
      ),
    ),
    h(
      'div',
      { class: 'start-side' },
      h(
        'div',
        { class: 'actions' },
        h('button', { class: 'primary', type: 'submit' }, 'Start run'),
        h('button', { type: 'button', onclick: () => start('/v1/probes'), 'aria-describedby': 'probe-help' }, 'Probe'),
        h(
          'button',
          {
            type: 'button',
            onclick: () => check(async (config, notices) => fill(result, summary(config), noticesOf(notices))),
          },
          'Check only',
        ),
      ),
      h(
        'p',
        { class: 'muted', id: 'probe-help' },
        'A probe samples 32 training questions and trains 3 steps: how hard the task is, what a teacher would add, and how long the run would take.',
      ),
      result,
    ),
  );
  fill(box, heading('Start a run'), shipped, form);

  const load = new AbortController();
  signal.addEventListener('abort', () => load.abort());
  poll(
    5,
    load.signal,
    async () => {
      const { items } = await call('/v1/run-files', { signal });
      load.abort(); // once is enough
      if (!items.length) return;
      fill(
        shipped,
        choice(
          'Start from',
          [['', 'an empty file'], ...items.map((/** @type {any} */ item) => [item.name, item.name])],
          '',
          (name) => {
            text.value = items.find((/** @type {any} */ item) => item.name === name)?.text ?? EMPTY;
            key = requestKey();
            idle();
          },
        ),
      );
    },
    (problem) => fill(shipped, problemBox(problem)),
  );
}

/** @param {HTMLTextAreaElement} text @param {string} field in dots */
function fieldButton(text, field) {
  const go = () => {
    const at = placeOf(text.value, field.split('.'));
    text.focus();
    if (at) text.setSelectionRange(at[0], at[1]);
  };
  return h('button', { type: 'button', class: 'small', onclick: go }, 'Go to ', h('code', {}, field));
}

/**
 * The position of a field's line: each part of its name is searched for after the previous part.
 * @param {string} text
 * @param {string[]} names
 * @returns {[number, number] | null}
 */
function placeOf(text, names) {
  let from = 0;
  /** @type {[number, number] | null} */
  let found = null;
  for (const name of names) {
    const match = new RegExp(`^[ \\t{,]*["']?${name.replace(/\W/g, '\\$&')}["']?\\s*:.*$`, 'm').exec(text.slice(from));
    if (!match) break;
    found = [from + match.index, from + match.index + match[0].length];
    from = found[0] + match[0].length;
  }
  return found;
}

/** @param {string | {name: string, path: string}[]} given */
function sourcesText(given) {
  return Array.isArray(given) ? given.map((source) => `${source.name} (${source.path})`).join(', ') : given;
}

/** @param {any} config */
function summary(config) {
  const { objective, training, rollout } = config;
  const facts = [
    ['Name', config.name],
    ['Objective', objective.name],
    ['Model', config.model.path],
    ['Training data', sourcesText(config.data.train)],
    ['Validation', sourcesText(config.data.validation ?? 'none')],
    ['Steps', `${training.steps} of ${training.prompts_per_step} prompts × ${rollout.group_size} rollouts`],
    ['Rollout servers', rollout.num_servers],
    ['Learner ranks', `${training.num_ranks}, ZeRO stage ${training.zero_stage}`],
  ];
  return h(
    'div',
    { class: 'problem fine', role: 'status' },
    h('strong', {}, '✓ Every field is valid'),
    h(
      'dl',
      { class: 'facts' },
      facts.map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]),
    ),
    h('p', { class: 'remedy' }, 'Whether the model and the data exist is checked when the run starts.'),
    h(
      'details',
      {},
      h('summary', {}, 'Full configuration with defaults'),
      h('pre', { tabindex: '0' }, JSON.stringify(config, null, 2)),
    ),
  );
}
