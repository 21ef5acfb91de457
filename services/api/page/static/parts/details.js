// The dialog that changes what people note about a run or an evaluation: name, place in the queue; a run's tags and note.
// @ts-check

import { call } from '../api.js';
import { announce, fill, h, openDialog } from '../dom.js';
import { problemBox } from './actions.js';

/**
 * @param {any} item a run or an evaluation
 * @param {string} path its resource
 * @param {(item: any) => void} onchanged
 */
export function openDetails(item, path, onchanged) {
  const isRun = 'tags' in item;
  const name = h('input', { type: 'text', name: 'name', required: true, maxlength: '100', value: item.name });
  const priority = h('input', {
    type: 'number',
    name: 'priority',
    required: true,
    min: '-100',
    max: '100',
    value: String(item.priority),
  });
  const tags = h('input', { type: 'text', name: 'tags', value: isRun ? item.tags.join(' ') : '', autocomplete: 'off' });
  const note = h('textarea', { name: 'note', rows: '5', maxlength: '10000', value: item.note });
  const problem = h('div', {});
  const send = h('button', { type: 'submit', class: 'primary' }, 'Save');
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    send.disabled = true;
    try {
      const body = {
        name: name.value.trim(),
        priority: Number(priority.value),
        ...(isRun ? { tags: tags.value.split(/[\s,]+/).filter(Boolean), note: note.value } : {}),
      };
      const changed = await call(path, { method: 'PATCH', body });
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
      h('h2', { id: 'details-title' }, `Edit ${item.name}`),
      h('div', { class: 'filters' }, field('Name', name), field('Priority in the queue', priority)),
      isRun ? [field('Tags, separated by spaces', tags), field('Note', note)] : null,
      problem,
      h('div', { class: 'actions' }, h('button', { type: 'button', onclick: () => dialog.close() }, 'Cancel'), send),
    ),
  );
  openDialog(dialog);
}
