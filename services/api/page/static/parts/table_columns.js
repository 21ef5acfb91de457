// The columns of the table of runs: fields of the configuration, and metrics of the newest step.
// @ts-check
import { h } from '../dom.js';
import { METRICS, metricText } from './metrics.js';
import { RunFileSchema } from './schema.js';

/** What the names of columns with metrics begin with. */
export const METRIC = 'metrics.';
export const DEFAULT_COLUMNS = ['objective.name', 'optimizer.learning_rate', 'metrics.reward_mean', 'metrics.accuracy'];
const MOST = 20;

/** @param {string} column */
export function isMetric(column) {
  return column.startsWith(METRIC);
}

/** @param {string} column */
export function titleOf(column) {
  return isMetric(column) ? (METRICS.get(column.slice(METRIC.length))?.title ?? column.slice(METRIC.length)) : column;
}

/** The value of a column; undefined if the run has none. @param {any} run of a list, or with its whole `config` @param {string} column */
export function cellValue(run, column) {
  if (isMetric(column)) return run.metrics[column.slice(METRIC.length)];
  if (run.fields && column in run.fields) return run.fields[column];
  return column.split('.').reduce((value, name) => value?.[name], run.config);
}

/** @param {any} value @param {string} column */
export function textOf(value, column) {
  if (value === undefined) return '–';
  if (isMetric(column)) return metricText(column.slice(METRIC.length), { [column.slice(METRIC.length)]: value });
  if (typeof value === 'number' && value !== 0 && Math.abs(value) < 0.001) return value.toExponential();
  return typeof value === 'string' ? value : JSON.stringify(value);
}

/** Every field of a run file. @returns {Promise<string[]>} */
export async function fieldNames() {
  const meta = /** @type {HTMLMetaElement} */ (document.querySelector('meta[name=turnout-run-file]'));
  const schema = new RunFileSchema(await (await fetch(meta.content)).json());
  /** @param {string[]} path @returns {string[]} */
  const below = (path) =>
    schema
      .fields(path)
      .flatMap(([name, node]) => (schema.isSection(node) ? below([...path, name]) : [[...path, name].join('.')]));
  return below([]).filter((name) => name !== 'name');
}

/** Chosen columns, each with a button that removes it, and a field that adds one. @param {string[]} columns changed in place @param {string[]} names of fields @param {() => void} onchanged */
export function columnControls(columns, names, onchanged) {
  const options = [...[...METRICS.keys()].map((name) => METRIC + name), ...names].filter(
    (name) => !columns.includes(name),
  );
  const add = (/** @type {any} */ event) => {
    const name = event.target.value.trim();
    if (!/^\w+(\.\w+)*$/.test(name) || columns.includes(name) || columns.length >= MOST) return;
    if (event.type === 'input' && !options.includes(name)) return; // still being typed
    columns.push(name);
    onchanged();
    /** @type {HTMLElement | null} */ (document.querySelector('input[name=column]'))?.focus();
  };
  return [
    h(
      'label',
      { class: 'field config' },
      h('span', {}, 'Add a column'),
      h('input', {
        name: 'column',
        list: 'columns',
        placeholder: 'rollout.temperature',
        autocomplete: 'off',
        oninput: add,
        onchange: add,
      }),
      h(
        'datalist',
        { id: 'columns' },
        options.map((name) => h('option', { value: name }, titleOf(name))),
      ),
    ),
    h(
      'div',
      { class: 'tags', role: 'group', 'aria-label': 'Columns' },
      columns.map((name, i) =>
        h(
          'button',
          {
            type: 'button',
            class: 'small',
            'aria-label': `Remove the column ${titleOf(name)}`,
            onclick: () => {
              columns.splice(i, 1);
              onchanged();
            },
          },
          `${titleOf(name)} ×`,
        ),
      ),
    ),
  ];
}
