// Which runs a list has: by state, name, configuration and tags. The choice is part of the address.
// @ts-check
import { choice, h } from '../dom.js';
import { HIDDEN } from './actions.js';

/** @typedef {{state: string, name: string, config: string, tag: string, hidden: boolean}} Filter `hidden`: hidden runs, too */

const STATES = ['queued', 'starting', 'running', 'paused', 'stopping', 'stopped', 'succeeded', 'failed'];
const TEXTS = /** @type {['name' | 'config' | 'tag', string, string][]} */ ([
  ['name', 'Name contains', ''],
  ['config', 'Configuration has', 'objective.name=grpo'],
  ['tag', 'Tagged', ''],
]);

/** @param {URLSearchParams} query @returns {Filter} */
export function filterOf(query) {
  const text = (/** @type {string} */ name) => query.get(name) ?? '';
  return {
    state: text('state'),
    name: text('name'),
    config: text('config'),
    tag: text('tag'),
    hidden: query.get('hidden') === '1',
  };
}

/** What an address says of a filter. @param {Filter} filter @returns {Record<string, string>} */
export function filterQuery({ hidden, ...texts }) {
  const said = Object.entries(texts).filter(([, text]) => text);
  return Object.fromEntries(hidden ? [...said, ['hidden', '1']] : said);
}

/** @param {string} view @param {Record<string, string>} query */
export function addressOf(view, query) {
  const said = new URLSearchParams(query).toString();
  return `#/${view}${said ? `?${said}` : ''}`;
}

/** @param {Filter} filter */
export function isFiltering(filter) {
  return Object.keys(filterQuery({ ...filter, hidden: false })).length > 0;
}

/** The query of `/v1/runs`. @param {Filter} filter */
export function searchOf(filter) {
  const query = new URLSearchParams();
  if (filter.state) query.set('state', filter.state);
  if (filter.name) query.set('name', filter.name);
  for (const setting of settingsOf(filter.config)) query.append('config', setting);
  const tags = filter.tag.split(/[\s,]+/).filter(Boolean);
  for (const tag of tags) query.append('tag', tag);
  if (!filter.hidden && !tags.includes(HIDDEN)) query.append('without_tag', HIDDEN);
  return query;
}

/** The complete field=value terms of a search; a term that is still being typed changes nothing. @param {string} text */
function settingsOf(text) {
  return text.split(/\s+/).filter((term) => /^\w+(\.\w+)*=[^[{]/.test(term));
}

/** Controls that change `filter`. @param {Filter} filter @param {() => void} onchanged */
export function filterControls(filter, onchanged) {
  const states = STATES.map((state) => /** @type {[string, string]} */ ([state, state]));
  return h(
    'div',
    { class: 'filters' },
    choice('State', [['', 'all'], ...states], filter.state, (value) => {
      filter.state = value;
      onchanged();
    }),
    TEXTS.map(([name, label, placeholder]) => {
      const oninput = (/** @type {any} */ event) => {
        filter[name] = event.target.value;
        onchanged();
      };
      const input = h('input', { type: 'search', name, placeholder, value: filter[name], oninput });
      return h('label', { class: name === 'config' ? 'field config' : 'field' }, h('span', {}, label), input);
    }),
    h(
      'label',
      { class: 'check scale' },
      h('input', {
        type: 'checkbox',
        checked: filter.hidden,
        onchange: (/** @type {any} */ event) => {
          filter.hidden = event.target.checked;
          onchanged();
        },
      }),
      'Show hidden runs',
    ),
  );
}
