// What a list that ends before its last item says.
// @ts-check

import { h } from '../dom.js';

/** @param {number} shown @param {string} command lists all */
export function olderNote(shown, command) {
  return h('p', { class: 'muted' }, `The newest ${shown} are shown. `, h('code', {}, command), ' lists all.');
}
