// The sample browser: one group side by side, and which tokens SRPO corrects.
// @ts-check

import { call, runPath } from '../api.js';
import { poll } from '../connection.js';
import { choice, fill, h, heading, notice } from '../dom.js';
import { fixed, percent } from '../format.js';
import { problemBox } from '../parts/actions.js';
import { positions } from '../parts/positions.js';
import { legend, QUANTITIES, rangeOf, tokenText } from '../parts/tokens.js';
import { twoTeachers } from '../parts/two_teachers.js';

const LIMIT = 20;

/** @type {import('../app.js').View} */
export async function samplesView(box, { path, query }, signal) {
  const id = path[1];
  const state = {
    step: query.get('step') ?? '',
    group: query.get('group') ?? '',
    quantity: query.get('color') ?? '',
    numbers: query.get('numbers') === '1',
  };
  const remember = () => {
    const next = new URLSearchParams({
      step: state.step,
      group: state.group,
      color: state.quantity,
      numbers: state.numbers ? '1' : '',
    });
    window.history.replaceState(null, '', `#/runs/${encodeURIComponent(id)}/samples?${next}`);
  };
  const [picker, content] = [h('div', { class: 'filters' }), h('div')];
  fill(
    box,
    h(
      'p',
      { class: 'crumbs' },
      h('a', { href: '#/' }, 'Runs'),
      ' / ',
      h('a', { href: `#/runs/${encodeURIComponent(id)}` }, id),
    ),
    heading('Samples'),
    picker,
    content,
  );
  fill(content, notice('loading', 'Loading samples …'));
  /** @type {any[]} */
  let groups = [];
  /** @type {any} */
  let reading = null;
  let shown = '';
  if (!state.step && state.group) state.step = state.group.split('/')[0]; // so that a shared link finds its group
  const load = async () => {
    const step = /^\d+$/.test(state.step) ? `&step=${state.step}` : '';
    const answer = await call(`${runPath(id)}/samples?limit=${LIMIT}${step}`, { signal });
    if (signal.aborted) return;
    groups = answer.items;
    const says = JSON.stringify([state.step, groups.map((group) => [keyOf(group), group.at])]);
    if (says !== shown) show();
    shown = says;
  };
  const reload = () => {
    shown = '';
    load().catch((error) => {
      if (!signal.aborted) fill(content, problemBox(error));
    });
  };

  const show = () => {
    const group =
      groups.find((one) => keyOf(one) === state.group) ??
      (reading && keyOf(reading) === state.group ? reading : groups[0]);
    // The group that is being read stays in the list, even once it is not among the newest.
    const listed = group && !groups.includes(group) ? [...groups, group] : groups;
    const options = listed.map(
      (one) => /** @type {[string, string]} */ ([keyOf(one), `step ${one.step}: ${one.question_id}`]),
    );
    const input = h('input', {
      type: 'number',
      min: '0',
      inputmode: 'numeric',
      value: state.step,
      placeholder: 'newest',
      onchange: (/** @type {any} */ event) => {
        [state.step, state.group, reading] = [event.target.value, '', null];
        remember();
        reload();
      },
    });
    const focused = picker.contains(document.activeElement) ? document.activeElement?.tagName : '';
    fill(
      picker,
      h('label', { class: 'field narrow' }, h('span', {}, 'Step'), input),
      group
        ? choice('Group', options, keyOf(group), (value) => {
            state.group = value;
            remember();
            show();
          })
        : null,
    );
    if (focused) /** @type {HTMLElement | null} */ (picker.querySelector(focused))?.focus();
    if (!group) {
      fill(
        content,
        state.step
          ? notice('empty', `No samples of step ${state.step}.`, 'Clear the field to see the newest samples.')
          : notice(
              'empty',
              'No samples yet.',
              'The learner keeps some groups of its steps; the first appear after the first step.',
            ),
      );
      return;
    }
    state.group = keyOf(group);
    const same = reading && keyOf(reading) === state.group && reading.at === group.at;
    reading = group;
    if (!same) showGroup(content, group, groups, state, remember, twoTeachers(id, group, signal));
  };
  poll(4, signal, load, (problem) => fill(content, problemBox(problem)));
}

/** @param {any} group */
function keyOf(group) {
  return `${group.step}/${group.group_id}`;
}

/**
 * @param {HTMLElement} content
 * @param {any} group
 * @param {any[]} groups All that are loaded.
 * @param {{quantity: string, numbers: boolean}} state
 * @param {() => void} remember
 * @param {HTMLElement} teachers
 */
function showGroup(content, group, groups, state, remember, teachers) {
  const known = Object.entries(QUANTITIES).filter(([, quantity]) =>
    group.samples.some((/** @type {any} */ s) => quantity.values(s).length),
  );
  const chosen = known.find(([name]) => name === state.quantity) ?? known[0];
  const [name, quantity] = chosen ?? ['advantage', QUANTITIES.advantage];
  const range = rangeOf(group.samples, quantity);
  const readout = h(
    'p',
    { class: 'readout', role: 'status', 'aria-live': 'polite', id: 'readout' },
    'Point at a token, or move to it with Tab and the arrow keys, to see its exact value.',
  );
  const again = () => {
    remember();
    showGroup(content, group, groups, state, remember, teachers);
  };
  const numbers = h('input', {
    type: 'checkbox',
    checked: state.numbers,
    onchange: (/** @type {any} */ event) => {
      state.numbers = event.target.checked;
      again();
    },
  });
  const correct = group.samples.filter((/** @type {any} */ s) => s.correct).length;
  fill(
    content,
    h(
      'section',
      { class: 'card question', 'aria-label': 'Question' },
      h('h2', {}, 'Prompt'),
      h('pre', { tabindex: '0' }, group.prompt),
      h(
        'dl',
        { class: 'facts' },
        h('dt', {}, 'Expected answer'),
        h('dd', {}, group.answer || '–'),
        h('dt', {}, 'Correct'),
        h('dd', {}, `${correct} of ${group.samples.length} responses`),
        h('dt', {}, 'Routes'),
        h('dd', {}, routes(group.samples)),
      ),
    ),
    h(
      'div',
      {},
      h(
        'div',
        { class: 'colouring' },
        choice(
          'Colour by',
          known.map(([key, one]) => /** @type {[string, string]} */ ([key, one.label])),
          name,
          (value) => {
            state.quantity = value;
            again();
            content.querySelector('select')?.focus();
          },
        ),
        legend(range, quantity),
        h('label', { class: 'check' }, numbers, 'Show values'),
        readout,
      ),
      name === 'advantage'
        ? null
        : h(
            'div',
            { class: 'position-bars' },
            positions('this group', group.samples, quantity),
            groups.length > 1
              ? positions(
                  `${groups.length} groups`,
                  groups.flatMap((one) => one.samples),
                  quantity,
                )
              : null,
          ),
      h(
        'div',
        { class: state.numbers ? 'samples numbers' : 'samples' },
        group.samples.map((/** @type {any} */ sample) => card(sample, quantity, range, readout)),
      ),
    ),
    teachers,
  );
}

/** @param {any[]} samples */
function routes(samples) {
  const count = (/** @type {string} */ route) => samples.filter((s) => s.route === route).length;
  return `${count('grpo')} GRPO, ${count('sdpo')} SDPO, ${count('none')} neither (${percent(count('sdpo') / samples.length)} corrected by the teacher)`;
}

/** @param {any} sample @param {import('../parts/tokens.js').Quantity} quantity @param {[number, number]} range @param {Element} readout */
function card(sample, quantity, range, readout) {
  const has = quantity.values(sample).length > 0;
  const route = sample.route === 'none' ? 'no route' : sample.route.toUpperCase();
  return h(
    'article',
    { class: 'card sample', dataset: { route: sample.route }, 'aria-label': `Response ${sample.index}` },
    h(
      'header',
      {},
      h('h3', {}, `Response ${sample.index}`),
      h(
        'span',
        { class: 'badge', dataset: { state: sample.correct ? 'succeeded' : 'failed' } },
        sample.correct ? '✓ correct' : '✕ failed',
      ),
      h('span', { class: 'badge route', dataset: { route: sample.route } }, route),
    ),
    h(
      'dl',
      { class: 'facts inline' },
      [
        ['Reward', fixed(sample.reward)],
        ...Object.entries(sample.parts ?? {}).map(([name, value]) => [`Part ${name}`, fixed(Number(value))]),
        ['Advantage', fixed(sample.advantage)],
        ['Length', `${sample.tokens.length} tokens`],
      ].map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value))),
    ),
    has
      ? null
      : h('p', { class: 'muted' }, `${quantity.label}: not available, because the teacher did not read this response.`),
    tokenText(sample, quantity, range, readout),
    sample.feedback
      ? h('details', {}, h('summary', {}, 'Feedback'), h('pre', { tabindex: '0' }, sample.feedback))
      : null,
    sample.teacher_prompt
      ? h('details', {}, h('summary', {}, 'Teacher’s prompt'), h('pre', { tabindex: '0' }, sample.teacher_prompt))
      : null,
  );
}
