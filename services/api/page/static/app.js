// The page: routing, the key, the focus. A view is a function of its box, its address and an abort signal.
// @ts-check
import { changeKey, hasKey, keyPrompt, learnRole } from './api.js';
import { connection } from './connection.js';
import { fill, h, heading, notice, openDialog } from './dom.js';
import { compareEvaluationsView, runChangesView } from './views/changes.js';
import { compareView } from './views/compare.js';
import { evaluationView } from './views/evaluation.js';
import { evaluationsView } from './views/evaluations.js';
import { experimentView } from './views/experiment.js';
import { experimentsView } from './views/experiments.js';
import { runView } from './views/run.js';
import { runsView } from './views/runs.js';
import { samplesView } from './views/samples.js';
import { startView } from './views/start.js';
import { tableView } from './views/table.js';

/** @typedef {{path: string[], query: URLSearchParams}} Address */
/** @typedef {(box: HTMLElement, address: Address, signal: AbortSignal) => void | Promise<void>} View */

const main = /** @type {HTMLElement} */ (document.getElementById('main'));
let leaving = new AbortController();
let first = true;

/** @param {Address} address @returns {{view: View, title: string, live: boolean}} */
function route({ path }) {
  if (path.length === 0) return { view: runsView, title: 'Runs', live: false };
  if (path[0] === 'table') return { view: tableView, title: 'Table of runs', live: false };
  if (path[0] === 'compare') return { view: compareView, title: 'Compare', live: false };
  if (path[0] === 'experiments' && path.length === 1)
    return { view: experimentsView, title: 'Experiments', live: false };
  if (path[0] === 'experiments' && path.length === 2) return { view: experimentView, title: path[1], live: false };
  if (path[0] === 'evaluations' && path.length === 1)
    return { view: evaluationsView, title: 'Evaluations', live: false };
  if (path[0] === 'evaluations' && path[1] === 'compare')
    return { view: compareEvaluationsView, title: 'Compare evaluations', live: false };
  if (path[0] === 'evaluations' && path.length === 2) return { view: evaluationView, title: path[1], live: false };
  if (path[0] === 'start') return { view: startView, title: 'Start a run', live: false };
  if (path[0] === 'runs' && path.length === 2) return { view: runView, title: path[1], live: true };
  if (path[0] === 'runs' && path[2] === 'changes')
    return { view: runChangesView, title: `Learned and forgotten in ${path[1]}`, live: false };
  if (path[0] === 'runs' && path[2] === 'samples')
    return { view: samplesView, title: `Samples of ${path[1]}`, live: false };
  return { view: unknown, title: 'Not found', live: false };
}

/** @param {HTMLElement} box */
function unknown(box) {
  fill(
    box,
    heading('Page not found'),
    notice('empty', 'There is no page at this address.', h('a', { href: '#/' }, 'See all runs')),
  );
}

/** @param {string} part */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function show() {
  leaving.abort();
  leaving = new AbortController();
  const [path, query] = location.hash.replace(/^#\/?/, '').split('?');
  const address = { path: path.split('/').filter(Boolean).map(decoded), query: new URLSearchParams(query) };
  const { view, title, live } = route(address);
  document.title = `${title} · Turnout`;
  for (const link of document.querySelectorAll('nav a')) {
    const target = (link.getAttribute('href') ?? '').replace(/^#\/?/, '');
    const here = target === (address.path[0] ?? '') || (target === '' && ['runs', 'table'].includes(address.path[0]));
    if (here) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  connection.expect(live);
  const box = h('div', { class: 'view' });
  fill(main, box);
  Promise.resolve(view(box, address, leaving.signal)).catch((error) => {
    if (error.name !== 'AbortError')
      fill(box, heading('Something went wrong'), notice('error', error.title ?? 'Error', error.message));
  });
  if (!first) /** @type {HTMLElement | null} */ (box.querySelector('h1'))?.focus();
  first = false;
  scrollTo(0, 0);
}

keyPrompt.ask = (wrong, optional = false) =>
  new Promise((resolve) => {
    const input = h('input', {
      type: 'password',
      name: 'key',
      autocomplete: 'off',
      required: true,
      'aria-describedby': 'key-help',
    });
    let given = '';
    const dialog = h(
      'dialog',
      {
        'aria-labelledby': 'key-title',
        oncancel: (/** @type {Event} */ event) => {
          if (!optional) event.preventDefault(); // nothing can be shown without one
        },
        onclose: () => {
          showKeyButton(given !== '' || optional);
          resolve(given);
        },
      },
      h(
        'form',
        {
          onsubmit: (/** @type {Event} */ event) => {
            event.preventDefault();
            given = input.value.trim();
            dialog.close();
          },
        },
        h('h2', { id: 'key-title' }, optional ? 'Use another key' : 'This API requires a key'),
        h(
          'p',
          { id: 'key-help' },
          wrong ? 'The key was not accepted. ' : '',
          'The key is kept until this tab is closed.',
        ),
        h('label', { class: 'field' }, h('span', {}, 'API key'), input),
        h(
          'div',
          { class: 'actions' },
          optional ? h('button', { type: 'button', onclick: () => dialog.close() }, 'Cancel') : null,
          h('button', { class: 'primary', type: 'submit' }, 'Use this key'),
        ),
      ),
    );
    openDialog(dialog);
  });

const keyButton = h(
  'button',
  {
    type: 'button',
    class: 'small',
    hidden: !hasKey(),
    onclick: async () => {
      if (!(await changeKey())) return;
      learnRole();
      show();
    },
  },
  'Change key …',
);
/** @type {HTMLElement} */ (document.getElementById('connection')).before(keyButton);

/** @param {boolean} on */
function showKeyButton(on) {
  keyButton.hidden = !on;
}

/** @type {HTMLElement} */ (document.querySelector('.skip')).addEventListener('click', (event) => {
  event.preventDefault(); // the address names the view, so the link must not change it
  main.focus();
});
addEventListener('hashchange', show);
learnRole();
show();
