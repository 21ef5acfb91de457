// What people do to a run: pause, resume, stop; ending one is asked twice.
// @ts-check
import { call, runPath } from './api.js';
import { announce, h } from './dom.js';

const ENDED = ['stopped', 'succeeded', 'failed'];
const MARKS = /** @type {Record<string, string>} */ ({
  queued: '◷',
  starting: '◌',
  running: '▶',
  paused: '❚❚',
  stopping: '◍',
  stopped: '■',
  succeeded: '✓',
  failed: '✕',
});

/** @param {string} state */
export function hasEnded(state) {
  return ENDED.includes(state);
}

/** The state as a word with a mark, so that colour is not needed. @param {string} state */
export function badge(state) {
  return h(
    'span',
    { class: 'badge', dataset: { state } },
    h('span', { 'aria-hidden': 'true' }, MARKS[state] ?? '·'),
    ' ',
    state,
  );
}

/**
 * The buttons that fit a run's state.
 * @param {any} run
 * @param {(run: any) => void} onchanged
 * @param {(problem: any) => void} onproblem
 */
export function buttons(run, onchanged, onproblem) {
  /** @param {string} action @param {string} said */
  const act = async (action, said) => {
    try {
      const changed = await call(`${runPath(run.id)}/${action}`, { method: 'POST' });
      announce(`${run.name}: ${said}`);
      onchanged(changed);
    } catch (error) {
      onproblem(error);
    }
  };
  const made = [];
  const pausing = run.desired === 'paused';
  if (['starting', 'running'].includes(run.state) && !pausing) {
    made.push(h('button', { type: 'button', onclick: () => act('pause', 'pausing after this step') }, 'Pause'));
  }
  if (run.state === 'paused' || (pausing && !hasEnded(run.state)) || ['stopped', 'failed'].includes(run.state)) {
    made.push(h('button', { type: 'button', onclick: () => act('resume', 'resuming') }, 'Resume'));
  }
  if (!hasEnded(run.state)) {
    const stopping = run.state === 'stopping';
    made.push(
      h(
        'button',
        {
          type: 'button',
          class: 'danger',
          onclick: async () => {
            const choice = await confirmStop(run, stopping);
            if (choice) await act(choice, 'stopping');
          },
        },
        stopping ? 'Stop now …' : 'Stop …',
      ),
    );
  }
  return made;
}

/**
 * @param {any} run
 * @param {boolean} stopping it has been asked to stop already
 * @returns {Promise<string>} the action, or an empty text
 */
function confirmStop(run, stopping) {
  return new Promise((resolve) => {
    const answer = (/** @type {string} */ value) => () => {
      dialog.close();
      resolve(value);
    };
    const dialog = h(
      'dialog',
      {
        'aria-labelledby': 'stop-title',
        onclose: () => {
          dialog.remove();
          resolve('');
        },
      },
      h('h2', { id: 'stop-title' }, `Stop ${run.name}?`),
      h(
        'p',
        {},
        stopping
          ? 'It is stopping: it finishes its step and writes a checkpoint. Stopping now loses what was trained since the last checkpoint.'
          : 'It finishes its step and writes a checkpoint; it can be resumed from there. Stopping now writes none.',
      ),
      h(
        'div',
        { class: 'actions' },
        h('button', { type: 'button', autofocus: true, onclick: answer('') }, 'Keep running'),
        h(
          'button',
          { type: 'button', class: 'danger', onclick: answer('stop?now=true') },
          'Stop now, without checkpoint',
        ),
        stopping
          ? null
          : h('button', { type: 'button', class: 'primary', onclick: answer('stop') }, 'Stop with checkpoint'),
      ),
    );
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** @param {any} problem */
export function problemBox(problem) {
  return h(
    'div',
    { class: 'problem', role: 'alert' },
    h('strong', {}, problem.title || 'Error'),
    h('p', {}, problem.message),
    problem.remedy ? h('p', { class: 'remedy' }, problem.remedy) : null,
  );
}
