// All runs as a table with chosen columns: fields of the configuration and newest metrics, compared with a baseline.
// @ts-check

import { call, runPath } from '../api.js';
import { poll } from '../connection.js';
import { fill, h, heading, notice } from '../dom.js';
import { problemBox } from '../parts/actions.js';
import { addressOf, filterControls, filterOf, filterQuery, searchOf } from '../parts/run_filters.js';
import { columnControls, DEFAULT_COLUMNS, fieldNames, METRIC } from '../parts/table_columns.js';
import { RunRows } from '../parts/table_rows.js';

const MOST = 1000;
const PAGE = 200;
const MOST_COMPARED = 8;

/** @type {import('../app.js').View} */
export async function tableView(box, { query }, signal) {
  const filter = filterOf(query);
  const choice = {
    columns: query.get('columns')?.split(',').filter(Boolean) ?? [...DEFAULT_COLUMNS],
    sort: query.get('sort') ?? '',
    baseline: query.get('baseline') ?? '',
    selected: new Set(),
  };
  const [controls, note, problem] = [h('div', { class: 'filters' }), h('p', { class: 'muted' }), h('div')];
  const [list, compare] = [
    h('a', { class: 'button' }, 'List'),
    h('a', { class: 'button', 'aria-disabled': 'true' }, 'Compare'),
  ];
  const rows = new RunRows(choice, () => show());
  /** @type {any[]} */
  let runs = [];
  /** @type {any} */
  let baseline = null;
  let asked = 0;

  const remember = () => {
    const { columns, sort, baseline } = choice;
    const said = {
      ...filterQuery(filter),
      ...(columns.join() === DEFAULT_COLUMNS.join() ? {} : { columns: columns.join() }),
      ...(sort && { sort }),
      ...(baseline && { baseline }),
    };
    window.history.replaceState(null, '', addressOf('table', said)); // so that it can be shared as a link
    list.href = addressOf('', filterQuery(filter));
    const compared = [...choice.selected, ...(baseline ? [baseline] : [])];
    compare.textContent = compared.length ? `Compare ${new Set(compared).size}` : 'Compare';
    const chosen = [...new Set(compared)].slice(0, MOST_COMPARED).join();
    if (chosen) compare.href = addressOf('compare', { runs: chosen, ...(baseline && { baseline }) });
    else compare.removeAttribute('href');
  };
  const show = () => {
    remember();
    if (baseline?.id !== choice.baseline) baseline = runs.find((run) => run.id === choice.baseline) ?? null;
    if (choice.baseline && !baseline) load().catch(() => {}); // it does not fit the filter
    rows.show(runs, baseline);
  };
  const load = async () => {
    const own = ++asked;
    const isFirst = runs.length === 0;
    const found = await fetchRuns(filter, choice.columns, signal, (some) => {
      if (isFirst && !signal.aborted && own === asked) rows.show(some, null); // the others follow
    });
    const extra = choice.baseline && !found.some((run) => run.id === choice.baseline);
    const other = extra ? await call(runPath(choice.baseline), { signal }).catch(() => null) : null;
    if (signal.aborted || own !== asked) return;
    if (extra && !other) choice.baseline = ''; // it was deleted
    runs = found;
    baseline = other ?? runs.find((run) => run.id === choice.baseline) ?? null;
    fill(problem);
    note.textContent = runs.length < MOST ? '' : `The newest ${MOST} runs that fit; narrow the filter for older ones.`;
    show();
  };
  const reload = () => {
    remember();
    load().catch((error) => signal.aborted || fill(problem, problemBox(error)));
  };
  fill(
    box,
    h('div', { class: 'title-row' }, heading('Table of runs'), h('div', { class: 'actions' }, list, compare)),
    filterControls(filter, reload),
    controls,
    problem,
    note,
    rows.element,
  );
  const showControls = (/** @type {string[]} */ names) =>
    fill(
      controls,
      columnControls(choice.columns, names, () => {
        showControls(names);
        reload();
      }),
    );
  showControls([]);
  remember();
  fill(rows.body, h('tr', {}, h('td', {}, notice('loading', 'Loading runs …'))));
  fieldNames().then(showControls, () => {}); // without them, names can still be typed
  poll(5, signal, load, (error) => fill(problem, problemBox(error)));
}

/** The newest runs that fit. @param {import('../parts/run_filters.js').Filter} filter @param {string[]} columns @param {AbortSignal} signal @param {(runs: any[]) => void} onpage */
async function fetchRuns(filter, columns, signal, onpage) {
  const query = searchOf(filter);
  query.set('limit', String(PAGE));
  query.append('metric', 'reward_mean');
  for (const column of columns)
    if (column.startsWith(METRIC)) query.append('metric', column.slice(METRIC.length));
    else query.append('field', column);
  const found = [];
  for (let cursor = ''; found.length < MOST; ) {
    if (cursor) query.set('cursor', cursor);
    const page = await call(`/v1/runs?${query}`, { signal });
    found.push(...page.items);
    cursor = page.next_cursor;
    if (!cursor) break;
    onpage(found);
  }
  return found;
}
