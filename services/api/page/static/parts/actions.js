// Actions on a run: pause, resume, stop, delete. Actions that cannot be undone need confirmation.
// @ts-check
import { call, runPath } from '../api.js';
import { announce, h, openDialog } from '../dom.js';
import { duration } from '../format.js';

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

/** The state as a word with a mark, so that it does not depend on colour. @param {string} state */
export function badge(state) {
  return h(
    'span',
    { class: 'badge', dataset: { state } },
    h('span', { 'aria-hidden': 'true' }, MARKS[state] ?? '·'),
    ' ',
    state,
  );
}

/** Why the run is in its state; for a queued one its place in the queue, and what it waits for. @param {any} run */
export function whyOf(run) {
  if (!run.queue) return run.reason;
  const { position, reason, starts_in_seconds: left } = run.queue;
  const when = left === null || left < 1 ? '' : ` Starts in about ${duration(left)}.`;
  return `${position}. in the queue. ${reason}${when}`;
}

/** The run's tags; each leads to the runs that have it. @param {any} run */
export function tagsOf(run) {
  return run.tags.map((/** @type {string} */ tag) =>
    h('a', { class: 'tag', href: `#/?tag=${encodeURIComponent(tag)}` }, tag),
  );
}

/** Notes about settings that are valid but may be unintended. @param {string[] | undefined} notices */
export function noticesOf(notices) {
  return (notices ?? []).map((text) => h('p', { class: 'reason', role: 'note' }, 'Note: ', text));
}

/**
 * The buttons for a run's state.
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
    made.push(
      h(
        'button',
        { type: 'button', class: 'operate', onclick: () => act('pause', 'pausing after this step') },
        'Pause',
      ),
    );
  }
  if (run.state === 'paused' || (pausing && !hasEnded(run.state)) || ['stopped', 'failed'].includes(run.state)) {
    made.push(h('button', { type: 'button', class: 'operate', onclick: () => act('resume', 'resuming') }, 'Resume'));
  }
  if (!hasEnded(run.state)) {
    const stopping = run.state === 'stopping';
    made.push(
      h(
        'button',
        {
          type: 'button',
          class: 'danger operate',
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
 * @param {string} keep the label of the button that cancels
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
        onclose: () => resolve(''),
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
    openDialog(dialog);
  });
}

/** @param {any} run @param {boolean} stopping whether it is stopping already */
function confirmStop(run, stopping) {
  const now = { text: 'Stop now, without checkpoint', value: 'stop?now=true', kind: 'danger' };
  const orderly = { text: 'Stop with checkpoint', value: 'stop', kind: 'primary' };
  return confirm(
    `Stop ${run.name}?`,
    stopping
      ? 'The run is stopping: it will finish its step and write a checkpoint. Stopping now loses everything trained since the last checkpoint.'
      : 'The run will finish its step and write a checkpoint, from which it can be resumed. Stopping now writes no checkpoint.',
    'Keep running',
    stopping ? [now] : [now, orderly],
  );
}

/** The tag of runs that lists leave out unless they are asked for them. */
export const HIDDEN = 'hidden';

/** Hide a run from lists, or show it again. @param {any} run @param {(run: any) => void} onchanged @param {(problem: any) => void} onproblem */
export function hideButton(run, onchanged, onproblem) {
  const isHidden = run.tags.includes(HIDDEN);
  const toggle = async () => {
    const tags = isHidden ? run.tags.filter((/** @type {string} */ tag) => tag !== HIDDEN) : [...run.tags, HIDDEN];
    try {
      const changed = await call(runPath(run.id), { method: 'PATCH', body: { tags } });
      announce(`${run.name}: ${isHidden ? 'shown' : 'hidden'}`);
      onchanged(changed);
    } catch (error) {
      onproblem(error);
    }
  };
  return h('button', { type: 'button', class: 'operate', onclick: toggle }, isHidden ? 'Unhide' : 'Hide');
}

/** For a run that has ended. @param {any} run @param {(problem: any) => void} onproblem */
export function deleteButton(run, onproblem) {
  return hasEnded(run.state)
    ? h('button', { type: 'button', class: 'danger operate', onclick: () => deleteRun(run, onproblem) }, 'Delete …')
    : null;
}

/** @param {any} run @param {(problem: any) => void} onproblem */
async function deleteRun(run, onproblem) {
  const choice = await confirm(
    `Delete ${run.name}?`,
    'Its weights, checkpoints and history will be deleted and cannot be restored. Forks keep their own files.',
    'Keep it',
    [{ text: 'Delete permanently', value: 'delete', kind: 'danger' }],
  );
  if (!choice) return;
  try {
    await call(runPath(run.id), { method: 'DELETE' });
    announce(`${run.name} was deleted`);
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
