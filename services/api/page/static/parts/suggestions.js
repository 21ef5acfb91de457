// What can be written at a place of a run file.
// @ts-check
import { entriesOf, placeAt } from './yaml_place.js';

/** @typedef {{text: string, insert: string, from: number, path: string[]}} Suggestion */
/** @typedef {{models: string[], data: string[]}} Inputs */

const MOST = 50;

/**
 * @param {string} text
 * @param {number} offset
 * @param {import('./schema.js').RunFileSchema} schema
 * @param {Inputs} inputs models and data files to choose from
 * @returns {Suggestion[]}
 */
export function suggestionsAt(text, offset, schema, inputs) {
  const place = placeAt(text, offset);
  if (!place) return [];
  const found = place.kind === 'field' ? fields(text, place, schema) : values(place, schema, inputs);
  const wanted = place.prefix.toLowerCase();
  const fitting = found.filter((one) => one.text.toLowerCase().includes(wanted));
  if (fitting.length === 1 && fitting[0].text === place.prefix) return []; // it is written already
  const begins = (/** @type {{text: string}} */ one) => (one.text.toLowerCase().startsWith(wanted) ? 0 : 1);
  return fitting
    .sort((a, b) => begins(a) - begins(b))
    .slice(0, MOST)
    .map((one) => ({ ...one, from: place.from }));
}

/** @param {string} text @param {import('./yaml_place.js').Place} place @param {import('./schema.js').RunFileSchema} schema */
function fields(text, { path, column }, schema) {
  const siblings = path.includes('[]') ? [] : entriesOf(text).filter((one) => one.path.length === path.length + 1);
  const taken = new Set(
    siblings.filter((one) => path.every((name, i) => one.path[i] === name)).map((one) => one.path.at(-1)),
  );
  return schema
    .fields(path)
    .filter(([name]) => !taken.has(name))
    .map(([name, node]) => ({
      text: name,
      insert: schema.isSection(node) ? `${name}:\n${' '.repeat(column + 2)}` : `${name}: `,
      path: [...path, name],
    }));
}

/** @param {import('./yaml_place.js').Place} place @param {import('./schema.js').RunFileSchema} schema @param {Inputs} inputs */
function values({ path }, schema, inputs) {
  const files = path.join('.') === 'model.path' ? inputs.models : isData(path) ? inputs.data : [];
  return [...files, ...schema.values(schema.field(path))].map((value) => ({ text: value, insert: value, path }));
}

/** @param {string[]} path */
function isData(path) {
  const last = path.at(-1) ?? '';
  return path[0] === 'data' && (path.length === 2 ? ['train', 'validation'].includes(last) : last === 'path');
}
