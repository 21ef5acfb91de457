// What a field of the run file is: its type, default and purpose.
// @ts-check
import { fillIfChanged, h } from '../dom.js';
import { ITEM } from './schema.js';

/**
 * @param {HTMLElement} box
 * @param {import('./schema.js').RunFileSchema | null} schema
 * @param {string[]} path
 * @param {string | undefined} fault what is wrong on the line
 */
export function showField(box, schema, path, fault) {
  const node = schema?.field(path);
  fillIfChanged(box, [path, fault, Boolean(schema)], () => [
    fault ? h('p', { class: 'bad' }, fault) : null,
    node && path.length ? about(/** @type {any} */ (schema), node, path) : nothing(path, schema, fault),
  ]);
}

/** @param {string[]} path @param {any} schema @param {string | undefined} fault */
function nothing(path, schema, fault) {
  if (fault) return null;
  return h(
    'p',
    { class: 'muted' },
    path.length && schema
      ? [h('code', {}, name(path)), ' is not a field.']
      : 'Put the cursor or the pointer on a field to read what it is for.',
  );
}

/** @param {import('./schema.js').RunFileSchema} schema @param {any} node @param {string[]} path */
function about(schema, node, path) {
  const [first, ...forms] = schema.forms(node);
  const text = first.description ?? forms.find((one) => one.description)?.description ?? '';
  const preset =
    schema.isSection(node) || first.default === undefined ? '' : ` · default ${JSON.stringify(first.default)}`;
  return [
    h('p', {}, h('code', {}, name(path)), ' ', h('span', { class: 'muted' }, schema.kind(node), preset)),
    text ? h('p', {}, marked(text)) : null,
  ];
}

/** @param {string[]} path */
function name(path) {
  return path.filter((one) => one !== ITEM).join('.');
}

/** Text between backticks as code. @param {string} text */
function marked(text) {
  return text
    .replaceAll('\n', ' ')
    .split('`')
    .map((part, i) => (i % 2 ? h('code', {}, part) : part));
}
