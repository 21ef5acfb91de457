// Start a run from a run file: a shipped one or the user's own text. The API checks every field, as one types.
// @ts-check

import { call, Problem, requestKey } from '../api.js';
import { poll } from '../connection.js';
import { announce, choice, fill, h, heading, notice } from '../dom.js';
import { noticesOf, problemBox } from '../parts/actions.js';
import { Editor } from '../parts/editor.js';
import { showField } from '../parts/field_help.js';
import { questionsOf } from '../parts/first_questions.js';
import { RunFileSchema } from '../parts/schema.js';
import { changeOf, entryOf, pathAtLine } from '../parts/yaml_place.js';

const EMPTY = 'name: my-run\nmodel:\n  path: \ndata:\n  train: \ntraining:\n  steps: 100\n';
const VALID = () => h('p', { class: 'muted' }, '✓ Every field is valid.');
/** After the last key, before the text is checked. */
const PAUSE_MILLISECONDS = 600;
const INPUTS = /** @type {[string, 'models' | 'data', [string, string]][]} */ ([
  ['Model', 'models', ['model', 'path']],
  ['Training data', 'data', ['data', 'train']],
  ['Validation data', 'data', ['data', 'validation']],
]);

/** @type {import('../app.js').View} */
export async function startView(box, _address, signal) {
  const result = h('div', { class: 'result', 'aria-live': 'polite' });
  const help = h('div', { class: 'field-help card' });
  const [shipped, choosers] = [h('div', { class: 'filters' }), h('div', { class: 'filters' })];
  let key = requestKey();
  let edition = 0; // a result is of the newest text, or of the newest button
  const idle = () =>
    fill(result, h('p', { class: 'muted' }, 'The API checks every field before anything starts. Errors appear here.'));
  const editor = new Editor(
    { id: 'run-file', name: 'run-file', rows: '24', 'aria-describedby': 'run-file-help' },
    {
      onchange: () => {
        key = requestKey();
        edition += 1;
        later();
      },
      onlook: (line) => showField(help, editor.schema, pathAtLine(editor.value, line), editor.faults.get(line)),
      onoffer: (path) => showField(help, editor.schema, path, undefined),
    },
  );
  const showChoosers = () => fill(choosers, choosersOf(editor));
  const later = afterPause(signal, async () => {
    showChoosers();
    const own = edition;
    const { problem, notices } = await verdictOn(editor.value, signal);
    if (own !== edition) return;
    editor.mark(faultsOf(problem));
    if (problem) fill(result, faultList(editor, problem));
    else if (!result.querySelector('.first-questions')) fill(result, VALID(), noticesOf(notices));
  });

  const busy = (/** @type {boolean} */ on) =>
    form.querySelectorAll('button').forEach((/** @type {any} */ button) => {
      button.disabled = on;
    });
  /** Check the text, then act. @param {(verdict: any) => Promise<void>} then */
  const check = async (then) => {
    edition += 1;
    busy(true);
    try {
      const verdict = await verdictOn(editor.value, signal);
      editor.mark(faultsOf(verdict.problem));
      if (verdict.problem) throw new Problem(verdict.problem);
      await then(verdict);
    } catch (error) {
      if (signal.aborted) return;
      const problem = /** @type {any} */ (error);
      fill(result, problemBox(problem), problem.field ? fieldButton(editor, problem.field) : null);
    } finally {
      busy(false);
    }
  };
  const actions = {
    start: (path = '/v1/runs') =>
      check(async ({ config }) => {
        const headers = { 'Idempotency-Key': path + key }; // the same text may be probed and then started
        const run = await call(path, { method: 'POST', body: config, headers, signal });
        announce(`${run.name} is ${run.state}`);
        location.hash = `#/runs/${encodeURIComponent(run.id)}`;
      }),
    check: () => check(async ({ config, notices }) => fill(result, summary(config), noticesOf(notices))),
    questions: () =>
      check(async () => {
        fill(result, h('p', { class: 'muted' }, 'Reading the data and the model’s chat template …'));
        const found = await call('/v1/run-files/questions', { method: 'POST', body: { text: editor.value }, signal });
        if (found.problem) throw new Problem(found.problem);
        fill(result, questionsOf(found));
      }),
  };
  const form = formOf(editor, choosers, help, result, actions);
  form.classList.add('operate');
  shipped.classList.add('operate');
  const lacking = notice('empty', 'This key cannot start runs.', 'Use a key with the role operate: Change key …');
  lacking.classList.add('lacking');
  fill(box, heading('Start a run'), lacking, shipped, form);
  idle();
  editor.value = EMPTY;
  showChoosers();
  const choose = (/** @type {string} */ text) => {
    editor.value = text;
    idle();
  };
  load(editor, shipped, choose, showChoosers, signal);
}

/** @param {string} text @param {AbortSignal} signal */
function verdictOn(text, signal) {
  return call('/v1/run-files/check', { method: 'POST', body: { text }, signal });
}

/** Call `act` once nothing was typed for a moment. @param {AbortSignal} signal @param {() => Promise<void>} act */
function afterPause(signal, act) {
  let timer = 0;
  signal.addEventListener('abort', () => clearTimeout(timer));
  return () => {
    clearTimeout(timer);
    timer = setTimeout(() => act().catch(() => {}), PAUSE_MILLISECONDS); // what fails here is said when it matters
  };
}

/** Fetch what the form offers: the schema, the inputs, the shipped files. @param {Editor} editor @param {Element} shipped @param {(text: string) => void} choose @param {() => void} showChoosers @param {AbortSignal} signal */
function load(editor, shipped, choose, showChoosers, signal) {
  const meta = /** @type {HTMLMetaElement} */ (document.querySelector('meta[name=turnout-run-file]'));
  const stop = new AbortController();
  signal.addEventListener('abort', () => stop.abort());
  poll(
    5,
    stop.signal,
    async () => {
      const [{ items }, inputs, schema] = await Promise.all([
        call('/v1/run-files', { signal }),
        call('/v1/run-files/inputs', { signal }),
        fetch(meta.content).then((answer) => answer.json()),
      ]);
      stop.abort(); // once is enough
      editor.schema = new RunFileSchema(schema);
      editor.inputs = inputs;
      showChoosers();
      if (!items.length) return;
      const names = items.map((/** @type {any} */ item) => [item.name, item.name]);
      fill(
        shipped,
        choice('Start from', [['', 'an empty file'], ...names], '', (name) =>
          choose(items.find((/** @type {any} */ item) => item.name === name)?.text ?? EMPTY),
        ),
      );
    },
    (problem) => fill(shipped, problemBox(problem)),
  );
}

/** Lists of the models and data files that runs may read. @param {Editor} editor */
function choosersOf(editor) {
  return INPUTS.map(([label, kind, path]) => {
    const names = editor.inputs[kind];
    if (!names.length) return null;
    const now = entryOf(editor.value, path)?.value ?? '';
    const isOther = now && !names.includes(now);
    const options = /** @type {[string, string][]} */ ([
      ['', isOther ? now : 'choose …'],
      ...names.map((name) => [name, name]),
    ]);
    const made = choice(label, options, now, (name) => {
      const change = changeOf(editor.value, path, name);
      if (name && change) editor.replace(change);
    });
    made.querySelector('select').disabled = changeOf(editor.value, path, '') === null;
    return made;
  });
}

/** The faults of a problem by line, from 0. @param {any} problem @returns {Map<number, string>} */
function faultsOf(problem) {
  const faults = new Map();
  for (const [, line, text] of (problem?.detail ?? '').matchAll(/^Line (\d+): (.*)$/gm))
    faults.set(line - 1, [faults.get(line - 1), text].filter(Boolean).join(' '));
  return faults;
}

/** What is wrong with a text that is still being written. @param {Editor} editor @param {any} problem */
function faultList(editor, problem) {
  const faults = [...faultsOf(problem)];
  const go = (/** @type {number} */ line) => {
    const from = editor.value.split('\n').slice(0, line).join('\n').length + (line ? 1 : 0);
    editor.select(from, from + editor.value.split('\n')[line].length);
  };
  return h(
    'ul',
    { class: 'checked' },
    faults.length
      ? faults.map(([line, text]) =>
          h(
            'li',
            {},
            h('button', { type: 'button', class: 'small', onclick: () => go(line) }, `Line ${line + 1}`),
            ' ',
            text,
          ),
        )
      : h('li', {}, problem.detail),
  );
}

/** @param {Editor} editor @param {Element} choosers @param {Element} help @param {Element} result @param {{start: (path?: string) => void, check: () => void, questions: () => void}} actions */
function formOf(editor, choosers, help, result, actions) {
  const button = (
    /** @type {string} */ text,
    /** @type {() => void} */ onclick,
    about = /** @type {string | null} */ (null),
  ) => h('button', { type: 'button', onclick, 'aria-describedby': about }, text);
  return h(
    'form',
    {
      class: 'start',
      onsubmit: (/** @type {Event} */ event) => {
        event.preventDefault();
        actions.start();
      },
    },
    h(
      'div',
      { class: 'start-text' },
      choosers,
      h('label', { for: 'run-file' }, 'Run file, YAML or JSON'),
      editor.element,
      h(
        'p',
        { class: 'muted', id: 'run-file-help' },
        'Suggestions appear as you type, or with Ctrl+Space: arrow keys and Enter choose one, Escape closes them. Relative paths are resolved from the services’ working folder.',
      ),
    ),
    h(
      'div',
      { class: 'start-side' },
      h(
        'div',
        { class: 'actions' },
        h('button', { class: 'primary', type: 'submit' }, 'Start run'),
        button('Probe', () => actions.start('/v1/probes'), 'probe-help'),
        button('Show questions', actions.questions),
        button('Check only', actions.check),
      ),
      h(
        'p',
        { class: 'muted', id: 'probe-help' },
        'A probe samples 32 training questions and trains 3 steps: how hard the task is, what a teacher would add, and how long the run would take.',
      ),
      help,
      result,
    ),
  );
}

/** @param {Editor} editor @param {string} field in dots */
function fieldButton(editor, field) {
  const go = () => {
    const names = field.split('.');
    const found = names.map((_, i) => entryOf(editor.value, names.slice(0, names.length - i))).find(Boolean);
    if (found) editor.select(found.from, found.to);
    else editor.text.focus();
  };
  return h('button', { type: 'button', class: 'small', onclick: go }, 'Go to ', h('code', {}, field));
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
