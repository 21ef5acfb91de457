// The rows of the table of runs: sorted by any column, with the difference to the baseline.
// @ts-check
import { fill, h, notice, spoken } from '../dom.js';
import { ago, short } from '../format.js';
import { badge, tagsOf } from './actions.js';
import { cellValue, isMetric, textOf, titleOf } from './table_columns.js';

/** @typedef {{columns: string[], sort: string, baseline: string, selected: Set<string>}} Choice */

const FIXED = /** @type {[string, string, (run: any) => any][]} */ ([
  ['name', 'Run', (run) => run.name],
  ['state', 'State', (run) => run.state],
  ['step', 'Step', (run) => run.step],
  ['created_at', 'Created', (run) => run.created_at],
]);

export class RunRows {
  /** @param {Choice} choice changed in place @param {() => void} onchanged */
  constructor(choice, onchanged) {
    this.choice = choice;
    this.onchanged = onchanged;
    this.head = h('thead');
    this.body = h('tbody');
    this.element = h(
      'div',
      { class: 'scroll card table-of-runs', tabindex: '0', role: 'group', 'aria-label': 'Runs' },
      h('table', {}, this.head, this.body),
    );
    /** @type {Map<string, {says: string, row: HTMLElement}>} */
    this.rows = new Map();
    this.headSays = '';
  }

  /** @param {any[]} runs @param {any} baseline */
  show(runs, baseline) {
    this.#showHead();
    const focused = /** @type {HTMLElement | null} */ (document.activeElement);
    const sorted = this.#sorted(runs);
    if (baseline && !runs.includes(baseline)) sorted.unshift(baseline);
    const rows = sorted.map((run) => this.#row(run, baseline));
    if (!rows.length) {
      fill(this.body, h('tr', {}, h('td', { colspan: '99' }, notice('empty', 'No runs match the filter.'))));
      return;
    }
    if (rows.length === this.body.children.length && rows.every((row, i) => row === this.body.children[i])) return;
    this.body.replaceChildren(...rows);
    if (focused && document.activeElement !== focused) focused.focus({ preventScroll: true });
  }

  #columns() {
    const [name, state, step, created] = FIXED;
    const chosen = this.choice.columns.map((column) => [
      column,
      titleOf(column),
      (/** @type {any} */ run) => cellValue(run, column),
    ]);
    return /** @type {typeof FIXED} */ ([name, state, step, ...chosen, created]);
  }

  #showHead() {
    const { sort, columns } = this.choice;
    const says = JSON.stringify([sort, columns]);
    if (says === this.headSays) return;
    this.headSays = says;
    const [by, down] = [sort.replace(/^-/, ''), sort.startsWith('-')];
    const cell = (/** @type {string} */ id, /** @type {string} */ title) =>
      h(
        'th',
        {
          scope: 'col',
          class: isMetric(id) ? 'number' : null,
          'aria-sort': id === by ? (down ? 'descending' : 'ascending') : null,
        },
        h(
          'button',
          { type: 'button', class: 'sort', onclick: () => this.#sort(id) },
          title,
          id === by ? (down ? ' ↓' : ' ↑') : '',
        ),
      );
    const focused = document.activeElement?.closest('th');
    const index = focused ? [...(focused.parentElement?.children ?? [])].indexOf(focused) : -1;
    fill(
      this.head,
      h(
        'tr',
        {},
        h('th', { scope: 'col' }, spoken('Choose')),
        this.#columns().map(([id, title]) => cell(id, title)),
      ),
    );
    if (index >= 0) this.head.querySelectorAll('th')[index]?.querySelector('button')?.focus();
  }

  /** First descending, then ascending, then as the API sorts. @param {string} id */
  #sort(id) {
    const { sort } = this.choice;
    this.choice.sort = sort === `-${id}` ? id : sort === id ? '' : `-${id}`;
    this.onchanged();
  }

  /** @param {any[]} runs */
  #sorted(runs) {
    const by = this.choice.sort.replace(/^-/, '');
    const column = this.#columns().find(([id]) => id === by);
    if (!column) return [...runs];
    const sign = this.choice.sort.startsWith('-') ? -1 : 1;
    const keyed = runs.map((run) => ({ run, key: column[2](run) }));
    const isMissing = (/** @type {any} */ key) => key === undefined || key === null;
    keyed.sort((a, b) => {
      if (isMissing(a.key) || isMissing(b.key)) return Number(isMissing(a.key)) - Number(isMissing(b.key));
      if (typeof a.key === 'number' && typeof b.key === 'number') return sign * (a.key - b.key);
      return sign * String(a.key).localeCompare(String(b.key));
    });
    return keyed.map(({ run }) => run);
  }

  /** @param {any} run @param {any} baseline */
  #row(run, baseline) {
    const { columns, selected } = this.choice;
    const values = columns.map((column) => cellValue(run, column));
    const other = baseline && baseline.id !== run.id ? columns.map((column) => cellValue(baseline, column)) : null;
    const isBaseline = baseline?.id === run.id;
    const says = JSON.stringify([run.name, run.state, run.step, run.tags, columns, values, other, isBaseline]);
    const known = this.rows.get(run.id);
    if (known?.says === says) return known.row;
    const check = h('input', {
      type: 'checkbox',
      checked: selected.has(run.id),
      'aria-label': `Compare ${run.name}`,
      onchange: (/** @type {any} */ event) => {
        if (event.target.checked) selected.add(run.id);
        else selected.delete(run.id);
        this.onchanged();
      },
    });
    const row = h(
      'tr',
      { dataset: { run: run.id }, class: isBaseline ? 'baseline' : null },
      h('td', { class: 'chooser' }, check, this.#star(run, isBaseline)),
      h('td', {}, h('a', { href: `#/runs/${encodeURIComponent(run.id)}` }, run.name), ' ', tagsOf(run)),
      h('td', {}, badge(run.state)),
      h('td', { class: 'number' }, `${run.step} of ${run.num_steps}`),
      columns.map((column, i) => cellOf(column, values[i], other ? [other[i]] : null)),
      h('td', { class: 'muted' }, ago(run.created_at)),
    );
    this.rows.set(run.id, { says, row });
    return row;
  }

  /** @param {any} run @param {boolean} isBaseline */
  #star(run, isBaseline) {
    const toggle = () => {
      this.choice.baseline = isBaseline ? '' : run.id;
      this.onchanged();
      // The row was made again.
      /** @type {HTMLElement | null} */ (this.body.querySelector(`[data-run="${CSS.escape(run.id)}"] .star`))?.focus();
    };
    const label = `Baseline: ${run.name}`;
    return h(
      'button',
      {
        type: 'button',
        class: 'star',
        'aria-pressed': String(isBaseline),
        'aria-label': label,
        title: label,
        onclick: toggle,
      },
      isBaseline ? '★' : '☆',
    );
  }
}

/** @param {string} column @param {any} value @param {[any] | null} other the baseline's value */
function cellOf(column, value, other) {
  const text = textOf(value, column);
  if (!isMetric(column)) {
    const differs = other && JSON.stringify(other[0]) !== JSON.stringify(value);
    return h('td', { class: differs ? 'differs' : other ? 'same' : null }, text);
  }
  const isKnown = other && Number.isFinite(value) && Number.isFinite(other[0]);
  const difference = isKnown ? value - other[0] : 0;
  return h(
    'td',
    { class: 'number' },
    text,
    isKnown ? h('small', { class: 'difference' }, `${difference > 0 ? '+' : ''}${short(difference)}`) : null,
  );
}
