// Reads one stored response again by two teachers, and shows which of its tokens each would make likelier, and where.
// @ts-check

import { call, runPath } from '../api.js';
import { choice, fill, h, say } from '../dom.js';
import { fixed, percent } from '../format.js';
import { problemBox } from './actions.js';
import { legend, rangeOf, tokenText } from './tokens.js';

const [BINS, WIDTH, HEIGHT] = [10, 240, 60];
const NAMES = ['A', 'B'];

/** @type {import('./tokens.js').Quantity} */
const GAP = {
  label: 'Gap',
  unit: 'nats',
  diverging: true,
  note: 'Orange: the teacher finds the token likelier than the policy does; blue: less likely.',
  values: (reading) => reading.gap,
};

/** @typedef {{label: string, teacher: any, text?: string}} Kind `text`: the field of the teacher that the user writes */

/**
 * What a teacher of this response can read, by a name; the first is what training's teacher read, if it read anything.
 * @param {any} group @param {number} index
 * @returns {Record<string, Kind>}
 */
function kinds(group, index) {
  const { question, responses } = group.material;
  const told = responses.find((/** @type {any} */ one) => one.index === index)?.told;
  const sample = sampleOf(group, index);
  const shown = responses.filter((/** @type {any} */ one) => one.index !== index && one.demonstration);
  const right = shown.filter((/** @type {any} */ one) => sampleOf(group, one.index).correct);
  /** @type {Record<string, Kind>} */
  const found = {};
  if (told) {
    found.told = { label: 'as in training', teacher: told };
    if (sample.feedback && !told.feedback)
      found.told_feedback = { label: 'as in training, with feedback', teacher: { ...told, feedback: true } };
    found.closing = { label: 'as in training, other closing text', teacher: told, text: 'closing' };
  }
  if (right.length > 1) {
    const all = right.map((/** @type {any} */ one) => one.index);
    found.all = { label: 'all correct responses', teacher: { demonstrations: all } };
  }
  for (const { index: other } of shown) {
    const mark = sampleOf(group, other).correct ? 'correct' : 'failed';
    found[`response_${other}`] = { label: `response ${other} (${mark})`, teacher: { demonstrations: [other] } };
  }
  if (question.solution) found.reference = { label: 'the row’s solution', teacher: { reference: true } };
  if (sample.feedback) found.feedback = { label: 'feedback alone', teacher: { feedback: true } };
  found.own = { label: 'a solution of your own', teacher: {}, text: 'solution' };
  return found;
}

/** @param {any} group @param {number} index */
function sampleOf(group, index) {
  return group.samples.find((/** @type {any} */ sample) => sample.index === index);
}

/** Sum of the gap's size in each tenth of a response, nats. @param {number[]} gap */
export function massByPosition(gap) {
  const sums = Array(BINS).fill(0);
  gap.forEach((value, i) => {
    sums[Math.floor((BINS * i) / gap.length)] += Math.abs(value);
  });
  return sums;
}

/** Both teachers' mass by position, as pairs of bars. @param {number[][]} gaps */
function chart(gaps) {
  const masses = gaps.map(massByPosition);
  const most = Math.max(...masses.flat()) || 1;
  const make = (/** @type {string} */ name, /** @type {Record<string, any>} */ attributes = {}) => {
    const element = document.createElementNS('http://www.w3.org/2000/svg', name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
    return element;
  };
  const svg = make('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none' });
  const step = WIDTH / BINS;
  masses.forEach((mass, which) => {
    mass.forEach((value, bin) => {
      const [width, height] = [step / 2 - 2, Math.max(1, (HEIGHT * value) / most)];
      const x = bin * step + 1 + (which * step) / 2;
      const bar = make('rect', { x, y: HEIGHT - height, width, height, class: `teacher-${NAMES[which]}` });
      const title = make('title');
      title.textContent = `${NAMES[which]}, ${tenth(bin)} of the response: ${fixed(value)} nats`;
      bar.append(title);
      svg.append(bar);
    });
  });
  const says = masses.map((mass, which) => {
    const total = mass.reduce((sum, value) => sum + value, 0);
    const top = mass.indexOf(Math.max(...mass));
    return total
      ? `${NAMES[which]}: most at ${tenth(top)} of the response, ${percent(mass[top] / total)} of ${fixed(total)} nats`
      : `${NAMES[which]}: no gap at all`;
  });
  const picture = h('div', {
    class: 'positions pairs',
    role: 'img',
    'aria-label': `Gap by position. ${says.join('; ')}`,
  });
  picture.append(svg);
  return h(
    'figure',
    { class: 'by-position' },
    picture,
    h(
      'figcaption',
      { class: 'muted' },
      'Size of the gap from the response’s start to its end. ',
      says.map((text, i) => [
        h('span', { class: `key teacher-${NAMES[i]}`, 'aria-hidden': 'true' }),
        `${text}${i ? '.' : '; '}`,
      ]),
    ),
  );
}

/** @param {number} bin */
function tenth(bin) {
  return `${10 * bin} to ${10 * bin + 10}%`;
}

/**
 * @param {Element} place @param {any} found the API's answer @param {any} sample @param {Kind[]} chosen
 */
function show(place, found, sample, chosen) {
  const read = found.teachers.map((/** @type {any} */ one, /** @type {number} */ which) => ({
    ...one,
    index: `${sample.index}, read by teacher ${NAMES[which]}`,
    tokens: sample.tokens,
    gap: one.logprobs.map((/** @type {number} */ value, /** @type {number} */ i) => value - found.policy[i]),
  }));
  const range = rangeOf(read, GAP);
  const readout = h(
    'p',
    { class: 'readout', role: 'status', 'aria-live': 'polite' },
    'Point at a token, or move to it with Tab and the arrow keys, to see its exact value.',
  );
  const mean = (/** @type {number[]} */ gap) => gap.reduce((sum, value) => sum + value, 0) / (gap.length || 1);
  fill(
    place,
    h('p', { class: 'muted' }, `Read by ${found.weights}: the policy and both teachers with these weights.`),
    legend(range, GAP),
    chart(read.map((/** @type {any} */ one) => one.gap)),
    h(
      'div',
      { class: 'answers' },
      read.map((/** @type {any} */ one, /** @type {number} */ which) =>
        h(
          'section',
          { 'aria-label': `Teacher ${NAMES[which]}` },
          h(
            'h3',
            {},
            h('span', { class: `key teacher-${NAMES[which]}`, 'aria-hidden': 'true' }),
            `${NAMES[which]}: ${chosen[which].label}`,
          ),
          h(
            'dl',
            { class: 'facts inline' },
            h('div', {}, h('dt', {}, 'Mean gap'), h('dd', {}, `${fixed(mean(one.gap))} nats`)),
            h('div', {}, h('dt', {}, 'Prompt'), h('dd', {}, `${one.num_prompt_tokens} tokens`)),
          ),
          tokenText(one, GAP, range, readout),
          h('details', {}, h('summary', {}, 'What it reads'), h('pre', { tabindex: '0' }, one.prompt)),
        ),
      ),
      readout,
    ),
  );
}

/** What one side's teacher reads. @param {string} name A or B */
function side(name) {
  const box = h('div', { class: 'side' });
  const text = h('textarea', { rows: 3, required: true });
  const label = h('span', {});
  const writing = h('label', { class: 'field', hidden: true }, label, text);
  /** @type {Record<string, Kind>} */
  let known = {};
  let chosen = '';
  const choose = (/** @type {string} */ value) => {
    chosen = value;
    const field = known[value].text;
    writing.hidden = !field;
    text.required = field === 'solution';
    text.disabled = !field;
    say(label, field === 'closing' ? `Closing text of ${name} (may be empty)` : `Solution of ${name}`);
  };
  return {
    box,
    /** Offer these, the one at `place` first. @param {Record<string, Kind>} offered @param {number} place */
    offer(offered, place) {
      known = offered;
      const names = Object.keys(known);
      choose(names.includes(chosen) ? chosen : names[Math.min(place, names.length - 1)]);
      const options = names.map((one) => /** @type {[string, string]} */ ([one, known[one].label]));
      fill(box, choice(`Teacher ${name} reads`, options, chosen, choose), writing);
    },
    kind: () => known[chosen],
    teacher() {
      const { teacher, text: field } = known[chosen];
      return field ? { ...teacher, [field]: text.value } : teacher;
    },
  };
}

/** The newest weights, and those of the run's checkpoints. @param {string} id @param {AbortSignal} signal */
function weights(id, signal) {
  const select = h('select', {}, h('option', { value: '' }, 'newest'));
  select.addEventListener(
    'focus',
    async () => {
      const checkpoints = await call(`${runPath(id)}/checkpoints`, { signal }).catch(() => ({ items: [] }));
      const steps = checkpoints.items.filter((/** @type {any} */ one) => one.exists);
      for (const step of [0, ...steps.map((/** @type {any} */ one) => one.step)])
        select.append(h('option', { value: String(step) }, `step ${step}`));
    },
    { once: true },
  );
  return select;
}

/**
 * The panel of one group.
 * @param {string} id of the run
 * @param {any} group
 * @param {AbortSignal} signal
 * @returns {HTMLElement}
 */
export function twoTeachers(id, group, signal) {
  const about = h(
    'p',
    { class: 'muted' },
    'A rollout server reads a response again, after what each teacher is told. The gap of a token is its log-prob for the ' +
      'teacher minus that for the policy, which reads the question alone. All with the same weights, so it is what the ' +
      'information adds; training’s teacher may have other weights, such as a moving average.',
  );
  const panel = h(
    'section',
    { class: 'card teachers', 'aria-label': 'Two teachers' },
    h('h2', {}, 'Two teachers on the same tokens'),
    about,
  );
  if (!group.material) {
    panel.append(
      h(
        'p',
        {},
        'This group was stored by a release that did not keep token ids. Choose a group of a newer step or run.',
      ),
    );
    return panel;
  }
  const { responses } = group.material;
  const sides = NAMES.map(side);
  const version = weights(id, signal);
  const send = h('button', { type: 'submit' }, 'Read');
  const result = h('div', { class: 'readings' });
  let index = (responses.find((/** @type {any} */ one) => one.told) ?? responses[0]).index;
  const offer = () => {
    const offered = kinds(group, index);
    sides.forEach((one, place) => {
      one.offer(offered, place);
    });
  };
  const options = group.samples.map((/** @type {any} */ sample) => [
    String(sample.index),
    `${sample.index} (${sample.correct ? 'correct' : 'failed'}${sample.route === 'none' ? '' : `, ${sample.route.toUpperCase()}`})`,
  ]);
  const response = choice('Response', options, String(index), (value) => {
    index = Number(value);
    offer();
  });
  offer();
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    const [sample, chosen] = [sampleOf(group, index), sides.map((one) => one.kind())];
    const body = {
      step: group.step,
      group_id: group.group_id,
      index,
      version: version.value === '' ? null : Number(version.value),
      teachers: sides.map((one) => one.teacher()),
    };
    send.disabled = true;
    fill(result, h('p', { class: 'muted', role: 'status' }, 'Waiting for a rollout server …'));
    try {
      const found = await call(`${runPath(id)}/samples/readings`, { method: 'POST', body, signal });
      show(result, found, sample, chosen);
    } catch (error) {
      if (!signal.aborted) fill(result, problemBox(/** @type {any} */ (error)));
    } finally {
      send.disabled = false;
    }
  };
  panel.append(
    h(
      'form',
      { class: 'try operate', onsubmit: submit },
      h('div', { class: 'answers' }, response, h('label', { class: 'field' }, h('span', {}, 'Weights'), version)),
      h(
        'div',
        { class: 'answers' },
        sides.map((one) => one.box),
      ),
      h('div', {}, send),
    ),
    h('p', { class: 'lacking muted' }, 'Only a key with the role operate can have responses read.'),
    result,
  );
  return panel;
}
