// The dialog that forks a run: a new run from a checkpoint of this one, with changed settings.
// @ts-check

import { call, requestKey, runPath } from '../api.js';
import { announce, choice, fill, h, openDialog } from '../dom.js';
import { problemBox } from './actions.js';

/**
 * @param {any} run
 * @param {any[]} checkpoints those that are on disk, in order
 * @param {number} [from] step of the checkpoint that is selected initially; by default the newest
 */
export function openFork(run, checkpoints, from) {
  let step = from ?? checkpoints.at(-1).step;
  let key = requestKey();
  const name = h('input', { type: 'text', name: 'name', maxlength: '100', placeholder: `${run.name} from ${step}` });
  const changes = h('textarea', {
    name: 'changes',
    rows: '4',
    spellcheck: 'false',
    autocomplete: 'off',
    'aria-describedby': 'fork-help',
    value: run.num_steps > step ? '' : `training.steps=${2 * step}`,
  });
  const problem = h('div', { class: 'fork-problem' });
  const send = h('button', { type: 'submit', class: 'primary' }, 'Fork');
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    send.disabled = true;
    try {
      const body = { checkpoint: step, name: name.value.trim() || null, changes: changesOf(changes.value) };
      const made = await call(`${runPath(run.id)}/fork`, { method: 'POST', body, headers: { 'Idempotency-Key': key } });
      announce(`${made.name} is ${made.state}`);
      dialog.close();
      location.hash = `#/runs/${encodeURIComponent(made.id)}`;
    } catch (error) {
      const shown = /** @type {any} */ (error);
      key = requestKey(); // the next submission is a different request
      fill(problem, problemBox(shown));
    } finally {
      send.disabled = false;
    }
  };
  const options = checkpoints
    .toReversed()
    .map((one) => /** @type {[string, string]} */ ([String(one.step), `step ${one.step}`]));
  const dialog = h(
    'dialog',
    { class: 'wide', 'aria-labelledby': 'fork-title' },
    h(
      'form',
      { onsubmit: submit },
      h('h2', { id: 'fork-title' }, `Fork ${run.name}`),
      h(
        'p',
        { class: 'muted' },
        'A new run continues from the checkpoint: weights, optimizer, self-teacher, step number and position in the data. This run does not change.',
      ),
      h(
        'div',
        { class: 'filters' },
        choice('From checkpoint', options, String(step), (value) => {
          step = Number(value);
          name.placeholder = `${run.name} from ${step}`;
        }),
        h('label', { class: 'field grow' }, h('span', {}, 'Name'), name),
      ),
      h('label', { class: 'field' }, h('span', {}, 'Changed settings'), changes),
      h(
        'p',
        { class: 'muted', id: 'fork-help' },
        'One field=value per line, for example ',
        h('code', {}, 'objective.name=grpo'),
        `. Step numbers continue from the checkpoint; this run has ${run.num_steps} steps.`,
      ),
      problem,
      h('div', { class: 'actions' }, h('button', { type: 'button', onclick: () => dialog.close() }, 'Cancel'), send),
    ),
  );
  openDialog(dialog);
}

/**
 * Lines of the form `section.field=value` as nested values; a value that is not JSON is taken as text.
 * @param {string} text
 */
export function changesOf(text) {
  /** @type {any} */
  const changes = {};
  for (const line of text.split('\n').map((one) => one.trim())) {
    if (!line) continue;
    const [path, ...rest] = line.split('=');
    const names = path.trim().split('.');
    if (!rest.length || names.some((name) => !name)) {
      throw {
        title: 'Not a setting',
        message: `“${line}” is not of the form field=value.`,
        remedy: 'Correct the line.',
      };
    }
    let place = changes;
    for (const name of names.slice(0, -1)) place = place[name] ??= {};
    place[/** @type {string} */ (names.at(-1))] = parsedOrText(rest.join('=').trim());
  }
  return changes;
}

/** @param {string} text */
function parsedOrText(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
