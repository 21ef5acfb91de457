// The dialog that changes what people note about a run: name, place in the queue, tags, note.
// @ts-check

import { call, runPath } from '../api.js';
import { announce, fill, h, openDialog } from '../dom.js';
import { problemBox } from './actions.js';

/**
 * @param {any} run
 * @param {(run: any) => void} onchanged
 */
export function openDetails(run, onchanged) {
  const name = h('input', { type: 'text', name: 'name', required: true, maxlength: '100', value: run.name });
  const priority = h('input', {
    type: 'number',
    name: 'priority',
    required: true,
    min: '-100',
    max: '100',
    value: String(run.priority),
  });
  const tags = h('input', { type: 'text', name: 'tags', value: run.tags.join(' '), autocomplete: 'off' });
  const note = h('textarea', { name: 'note', rows: '5', maxlength: '10000', value: run.note });
  const problem = h('div', {});
  const send = h('button', { type: 'submit', class: 'primary' }, 'Save');
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    send.disabled = true;
    try {
      const body = {
        name: name.value.trim(),
        priority: Number(priority.value),
        tags: tags.value.split(/[\s,]+/).filter(Boolean),
        note: note.value,
      };
      const changed = await call(runPath(run.id), { method: 'PATCH', body });
      announce('Saved');
      dialog.close();
      onchanged(changed);
    } catch (error) {
      fill(problem, problemBox(/** @type {any} */ (error)));
    } finally {
      send.disabled = false;
    }
  };
  const field = (/** @type {string} */ label, /** @type {Element} */ input) =>
    h('label', { class: 'field grow' }, h('span', {}, label), input);
  const dialog = h(
    'dialog',
    { class: 'wide', 'aria-labelledby': 'details-title' },
    h(
      'form',
      { onsubmit: submit },
      h('h2', { id: 'details-title' }, `Edit ${run.name}`),
      h('div', { class: 'filters' }, field('Name', name), field('Priority in the queue', priority)),
      field('Tags, separated by spaces', tags),
      field('Note', note),
      problem,
      h('div', { class: 'actions' }, h('button', { type: 'button', onclick: () => dialog.close() }, 'Cancel'), send),
    ),
  );
  openDialog(dialog);
}
