// Asks a run's policy or a checkpoint, and shows the answer as it arrives, its tokens coloured by their log-probs.
// @ts-check

import { askForKey, call, credentials, Problem, problemOf, runPath } from '../api.js';
import { fill, h, say } from '../dom.js';
import { hasEnded, problemBox } from './actions.js';
import { legend, tokenText } from './tokens.js';

/** @type {import('./tokens.js').Quantity} */
const LOGPROB = {
  label: 'Log-prob',
  unit: 'nats',
  note: 'Far below 0: the policy found this token unlikely.',
  values: (sample) => sample.logprobs,
};
/** Colours get no stronger below this, about one chance in 150. @type {[number, number]} */
const RANGE = [-5, 0];

/**
 * The answer's server-sent events, as OpenAI's chunks.
 * @param {Response} answer
 * @returns {AsyncGenerator<any>}
 */
async function* chunksOf(answer) {
  if (!answer.body) return;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) {
      if (!line.startsWith('data: {')) continue;
      const chunk = JSON.parse(line.slice('data: '.length));
      if (chunk.error) throw new Problem({ status: Number(chunk.error.code), detail: chunk.error.message });
      yield chunk;
    }
  }
}

/**
 * @param {string} model
 * @param {string} prompt
 * @param {number} temperature
 * @param {AbortSignal} signal
 * @returns {Promise<Response>}
 */
async function ask(model, prompt, temperature, signal) {
  const messages = [{ role: 'user', content: prompt }];
  const body = JSON.stringify({ model, messages, temperature, logprobs: true, stream: true });
  for (;;) {
    const key = credentials();
    const headers = { ...key, 'Content-Type': 'application/json' };
    const answer = await fetch('/v1/chat/completions', { method: 'POST', headers, body, signal });
    if (answer.ok) return answer;
    if (answer.status !== 401) throw await refusal(answer);
    await askForKey(key);
  }
}

/** An error in OpenAI's format, or a problem document. @param {Response} answer */
async function refusal(answer) {
  const body = await answer
    .clone()
    .json()
    .catch(() => null);
  if (!body?.error) return problemOf(answer);
  return new Problem({ status: answer.status, title: body.error.type, detail: body.error.message });
}

/** Where one model's answer goes. @param {string} model */
function column(model) {
  const state = h('div', { class: 'muted', role: 'status' }, 'Waiting for the engine …');
  const text = h('div', {});
  const readout = h('p', { class: 'readout', 'aria-live': 'polite' });
  const label = `Answer of ${model}`;
  const element = h('section', { 'aria-label': label }, h('h3', {}, model), state, text, readout);
  return { element, state, text, readout };
}

/**
 * @param {ReturnType<typeof column>} place
 * @param {string} model
 * @param {string} prompt
 * @param {number} temperature
 * @param {AbortSignal} signal
 */
async function show(place, model, prompt, temperature, signal) {
  /** @type {{index: string, tokens: string[], logprobs: number[]}} */
  const sample = { index: model, tokens: [], logprobs: [] };
  let weights = model;
  const live = h('div', { class: 'tokens' });
  try {
    for await (const chunk of chunksOf(await ask(model, prompt, temperature, signal))) {
      weights = chunk.system_fingerprint || weights;
      for (const choice of chunk.choices ?? []) {
        for (const token of choice.logprobs?.content ?? []) {
          sample.tokens.push(token.token);
          sample.logprobs.push(token.logprob);
          live.append(token.token);
        }
      }
      if (!live.parentElement && sample.tokens.length) fill(place.text, live);
      say(place.state, `${sample.tokens.length} tokens`);
    }
    say(place.state, `${sample.tokens.length} tokens, sampled by ${weights}`);
  } catch (error) {
    if (signal.aborted) say(place.state, `Stopped after ${sample.tokens.length} tokens.`);
    else fill(place.state, problemBox(/** @type {any} */ (error)));
  }
  if (sample.tokens.length) fill(place.text, tokenText(sample, LOGPROB, RANGE, place.readout));
}

/** @param {string} id @param {AbortSignal} signal */
function formOf(id, signal) {
  const prompt = h('textarea', { rows: 3, required: true });
  const temperature = h('input', { type: 'number', min: 0, max: 2, step: 0.1, value: '1' });
  const other = h('select', {}, h('option', { value: '' }, 'nothing'));
  const send = h('button', { type: 'submit' }, 'Ask');
  const stop = h('button', { type: 'button', hidden: true }, 'Stop');
  const field = (/** @type {string} */ label, /** @type {HTMLElement} */ input) =>
    h('label', { class: 'field' }, h('span', {}, label), input);
  const form = h(
    'form',
    { class: 'try' },
    field('Prompt (Ctrl+Enter asks)', prompt),
    h('div', { class: 'filters' }, field('Temperature', temperature), field('Compare with', other), send, stop),
  );
  other.addEventListener('focus', async () => {
    const [models, checkpoints] = await Promise.all([
      call('/v1/models', { signal }).catch(() => ({ data: [] })),
      call(`${runPath(id)}/checkpoints`, { signal }).catch(() => ({ items: [] })),
    ]);
    const chosen = other.value;
    const own = checkpoints.items
      .filter((/** @type {any} */ one) => one.exists)
      .map((/** @type {any} */ one) => one.step);
    const others = models.data.filter((/** @type {any} */ model) => model.id !== id && !model.id.startsWith(`${id}@`));
    fill(
      other,
      h('option', { value: '' }, 'nothing'),
      [0, ...own].map((step) => h('option', { value: `${id}@${step}` }, `this run at step ${step}`)),
      others.map((/** @type {any} */ model) =>
        h('option', { value: model.id }, model.name === model.id ? model.id : `${model.name} (${model.id})`),
      ),
    );
    other.value = chosen;
  });
  return { form, prompt, temperature, other, send, stop };
}

/**
 * The box on a run's page. `update` shows the form while the run can be asked, or else why it cannot.
 * @param {string} id
 * @param {AbortSignal} signal
 */
export function tryIt(id, signal) {
  const { form, prompt, temperature, other, send, stop } = formOf(id, signal);
  const answers = h('div', { class: 'answers' });
  const empty = h('p', { class: 'muted' }, 'Loading …');
  form.hidden = true;
  let running = /** @type {AbortController | null} */ (null);

  const submit = async () => {
    if (running || !form.reportValidity()) return;
    running = new AbortController();
    const both = AbortSignal.any([signal, running.signal]);
    const models = [id, ...(other.value ? [other.value] : [])];
    const places = models.map(column);
    fill(
      answers,
      places.map((place) => place.element),
      legend(RANGE, LOGPROB),
    );
    send.disabled = true;
    stop.hidden = false;
    const warmth = Number(temperature.value);
    await Promise.all(models.map((model, i) => show(places[i], model, prompt.value, warmth, both)));
    running = null;
    send.disabled = false;
    stop.hidden = true;
  };
  form.addEventListener('submit', (/** @type {Event} */ event) => {
    event.preventDefault();
    submit();
  });
  form.addEventListener('keydown', (/** @type {KeyboardEvent} */ event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) submit();
  });
  stop.addEventListener('click', () => running?.abort());

  /** @param {any} run @param {any[]} services */
  const update = (run, services) => {
    const samples = (/** @type {any} */ one) =>
      one.kind === 'rollout' && one.run_id === id && ['ready', 'updating'].includes(one.state);
    const isServed = services.some(samples);
    form.hidden = !isServed && !hasEnded(run.state) && !running;
    empty.hidden = isServed && !hasEnded(run.state);
    say(
      empty,
      hasEnded(run.state)
        ? 'The run has ended. An idle rollout server loads its weights when they are asked for.'
        : 'The run can be asked once one of its rollout servers is ready.',
    );
  };
  return { element: h('div', {}, form, empty, answers), update };
}
