// A run's heading: its state, how far it is, and what can be done with it now.
// @ts-check
import { badge, buttons, deleteButton, hasEnded } from './actions.js';
import { fill, h, heading } from './dom.js';
import { duration } from './format.js';

/**
 * The heading with state and buttons; rebuilt only when it says something new, so that the focus stays where it is.
 * @param {HTMLElement} head
 * @param {any} run
 * @param {number | undefined} pace seconds a step
 * @param {{canFork: boolean, onfork: () => void, onchanged: (run: any) => void, onproblem: (problem: any) => void}} act
 */
export function showHead(head, run, pace, { canFork, onfork, onchanged, onproblem }) {
  const says = JSON.stringify([run.state, run.reason, run.desired, canFork]);
  if (head.dataset.says !== says) {
    const focused = head.contains(document.activeElement) ? document.activeElement?.tagName : null;
    head.dataset.says = says;
    const id = encodeURIComponent(run.id);
    const parent = run.forked_from?.run_id;
    const asked =
      run.desired === 'paused' && ['starting', 'running'].includes(run.state) ? 'pausing after this step' : '';
    fill(
      head,
      h('p', { class: 'crumbs' }, h('a', { href: '#/' }, 'Runs'), ' / ', run.id),
      h(
        'div',
        { class: 'title-row' },
        heading(run.name, ' '),
        badge(run.state),
        h(
          'div',
          { class: 'actions' },
          buttons(run, onchanged, onproblem),
          canFork ? h('button', { type: 'button', onclick: onfork }, 'Fork …') : null,
          h('a', { class: 'button', href: `#/runs/${id}/samples` }, 'Samples'),
          h(
            'a',
            { class: 'button', href: `#/compare?runs=${[run.id, parent].filter(Boolean).map(encodeURIComponent)}` },
            'Compare',
          ),
          deleteButton(run, onproblem),
        ),
      ),
      parent
        ? h(
            'p',
            { class: 'reason' },
            'Forked from ',
            h('a', { href: `#/runs/${encodeURIComponent(parent)}` }, parent),
            ` at step ${run.forked_from.step}`,
          )
        : null,
      asked || run.reason
        ? h(
            'p',
            { class: run.state === 'failed' ? 'reason bad' : 'reason' },
            [asked, run.reason].filter(Boolean).join(' · '),
          )
        : null,
      h(
        'div',
        { class: 'run-progress wide' },
        h('progress', { max: run.num_steps, 'aria-label': 'Steps' }),
        h('span', { class: 'run-steps' }),
      ),
    );
    // A button that was pressed may be gone; the heading takes the focus, so that a keyboard is not thrown to the top.
    if (focused)
      /** @type {HTMLElement} */ (
        focused === 'H1' ? head.querySelector('h1') : (head.querySelector('button') ?? head.querySelector('h1'))
      ).focus();
  }
  /** @type {any} */ (head.querySelector('progress')).value = run.step;
  const end = hasEnded(run.state) ? run.finished_at : Date.now() / 1000;
  const parts = [`step ${run.step} of ${run.num_steps}`, run.objective];
  if (run.started_at) parts.push(`${hasEnded(run.state) ? 'took' : 'for'} ${duration(end - run.started_at)}`);
  if (pace !== undefined && run.state === 'running')
    parts.push(`about ${duration(pace * (run.num_steps - run.step))} left`);
  fill(/** @type {Element} */ (head.querySelector('.run-steps')), parts.join(' · '));
}

/** @param {Element} place @param {Record<string, number>} groups */
export function showLedger(place, groups) {
  if (!Object.keys(groups).length) return fill(place);
  const dropped = Object.entries(groups).filter(([name, count]) => name.startsWith('dropped_') && count);
  const reasons = dropped.map(([name, count]) => `${count} ${name.replace('dropped_', '').replaceAll('_', ' ')}`);
  const parts = ['fed', 'trained', 'in_flight'].map((name) => `${groups[name] ?? 0} ${name.replace('_', ' ')}`);
  fill(
    place,
    `Groups so far: ${parts.join(', ')}; ${reasons.length ? `dropped: ${reasons.join(', ')}` : 'none dropped'}. `,
    'Scored groups stay in their queue until the next checkpoint, for a learner that has to train them again.',
  );
}
