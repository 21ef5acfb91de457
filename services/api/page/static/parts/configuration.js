// Configurations as flat fields, and what differs between several.
// @ts-check
import { h, table } from '../dom.js';

/** Fields in dots with their values as JSON. @param {any} values @param {string} [prefix] @returns {[string, string][]} */
function fieldsOf(values, prefix = '') {
  return Object.entries(values).flatMap(([name, value]) =>
    value !== null && typeof value === 'object' && !Array.isArray(value)
      ? fieldsOf(value, `${prefix}${name}.`)
      : [[prefix + name, JSON.stringify(value)]],
  );
}

/** A table of the fields that are not the same in all runs. @param {any[]} runs with their `config` */
export function differencesOf(runs) {
  if (runs.length < 2) return null;
  const maps = runs.map((run) => new Map(fieldsOf(run.config)));
  const names = [...new Set(maps.flatMap((map) => [...map.keys()]))];
  const differ = names.filter((name) => name !== 'name' && new Set(maps.map((map) => map.get(name))).size > 1);
  const columns = ['Field', ...runs.map((run) => `${run.name} (${run.id.slice(-4)})`)];
  return h(
    'section',
    { class: 'card part', 'aria-label': 'Configuration differences' },
    h('h2', {}, 'Configuration differences'),
    differ.length
      ? table(
          'Fields that differ',
          columns,
          differ.map((name) => [h('code', {}, name), ...maps.map((map) => map.get(name) ?? '–')]),
        )
      : h('p', { class: 'muted' }, 'All fields but the name are the same.'),
  );
}
