// What people do to a run: pause, resume, stop, delete; what cannot be undone needs confirmation.
// @ts-check
import { call, runPath } from '../api.js';
import { announce, h } from '../dom.js';

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

/** What is valid but perhaps not meant. @param {string[] | undefined} notices */
export function noticesOf(notices) {
  return (notices ?? []).map((text) => h('p', { class: 'reason', role: 'note' }, 'Note: ', text));
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
 * Ask before something that cannot be undone.
 * @param {string} title
 * @param {string} text
 * @param {string} keep the button that does nothing
 * @param {{text: string, value: string, kind: string}[]} choices
 * @returns {Promise<string>} the value of the choice, or an empty text
 */
export function confirm(title, text, keep, choices) {
  return new Promise((resolve) => {
    const answer = (/** @type {string} */ value) => () => {
      dialog.close();
      resolve(value);
    };
    const dialog = h(
      'dialog',
      {
        'aria-labelledby': 'confirm-title',
        onclose: () => {
          dialog.remove();
          resolve('');
        },
      },
      h('h2', { id: 'confirm-title' }, title),
      h('p', {}, text),
      h(
        'div',
        { class: 'actions' },
        h('button', { type: 'button', autofocus: true, onclick: answer('') }, keep),
        choices.map((one) => h('button', { type: 'button', class: one.kind, onclick: answer(one.value) }, one.text)),
      ),
    );
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** @param {any} run @param {boolean} stopping it has been asked to stop already */
function confirmStop(run, stopping) {
  const now = { text: 'Stop now, without checkpoint', value: 'stop?now=true', kind: 'danger' };
  const orderly = { text: 'Stop with checkpoint', value: 'stop', kind: 'primary' };
  return confirm(
    `Stop ${run.name}?`,
    stopping
      ? 'It is stopping: it finishes its step and writes a checkpoint. Stopping now loses what was trained since the last checkpoint.'
      : 'It finishes its step and writes a checkpoint; it can be resumed from there. Stopping now writes none.',
    'Keep running',
    stopping ? [now] : [now, orderly],
  );
}

/** For a run that has ended. @param {any} run @param {(problem: any) => void} onproblem */
export function deleteButton(run, onproblem) {
  return hasEnded(run.state)
    ? h('button', { type: 'button', class: 'danger', onclick: () => deleteRun(run, onproblem) }, 'Delete …')
    : null;
}

/** @param {any} run @param {(problem: any) => void} onproblem */
async function deleteRun(run, onproblem) {
  const choice = await confirm(
    `Delete ${run.name}?`,
    'Its weights, checkpoints and history are deleted and cannot be restored. Forks of it keep their own files.',
    'Keep it',
    [{ text: 'Delete permanently', value: 'delete', kind: 'danger' }],
  );
  if (!choice) return;
  try {
    await call(runPath(run.id), { method: 'DELETE' });
    announce(`${run.name} is deleted`);
    location.hash = '#/';
  } catch (error) {
    onproblem(error);
  }
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
