// A response's tokens, coloured by one quantity. The exact value shows on hover and focus, and next to each token on demand.
// @ts-check
import { h, say } from '../dom.js';
import { fixed, short } from '../format.js';

/** @typedef {{label: string, unit: string, note: string, values: (sample: any) => number[], diverging?: boolean}} Quantity */

/** Tokens of a response that are drawn initially; the rest follow on demand. */
const FIRST_TOKENS = 1200;

/** @type {Record<string, Quantity>} */
export const QUANTITIES = {
  teacher_entropy: {
    label: 'Teacher entropy',
    unit: 'nats',
    note: 'Low: the teacher is sure of the next token.',
    values: (s) => s.teacher_entropy,
  },
  distillation_weight: {
    label: 'Distillation weight',
    unit: '',
    note: 'The mean is 1; above it, SRPO corrects this token more than others.',
    values: (s) => s.distillation_weight,
  },
  divergence: {
    label: 'Divergence',
    unit: 'nats',
    note: 'How far the policy is from the teacher here.',
    values: (s) => s.divergence,
  },
  logprobs: {
    label: 'Log-prob (learner)',
    unit: 'nats',
    note: 'Far below 0: the policy found this token unlikely.',
    values: (s) => s.logprobs,
  },
  behaviour_logprobs: {
    label: 'Log-prob (when sampled)',
    unit: 'nats',
    note: 'As the rollout engine reported it when it sampled.',
    values: (s) => s.behaviour_logprobs,
  },
  advantage: {
    label: 'Advantage',
    unit: '',
    diverging: true,
    note: 'One value per response, which GRPO makes more (+) or less (−) likely.',
    values: (s) => s.tokens.map(() => s.advantage),
  },
};

/**
 * The range of a quantity over a whole group, so that siblings can be compared.
 * @param {any[]} samples
 * @param {Quantity} quantity
 * @returns {[number, number]}
 */
export function rangeOf(samples, quantity) {
  let [low, high] = [Infinity, -Infinity];
  for (const sample of samples) {
    for (const value of quantity.values(sample)) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  }
  if (!Number.isFinite(low)) return [0, 1];
  if (quantity.diverging) {
    const most = Math.max(Math.abs(low), Math.abs(high)) || 1;
    return [-most, most];
  }
  if (low >= 0) low = 0;
  if (high <= 0) high = 0;
  return low === high ? [low, low + 1] : [low, high];
}

/**
 * A value's background: one hue, stronger for larger values; two hues around 0 for a signed quantity.
 * @param {number} value
 * @param {[number, number]} range
 * @param {boolean} diverging
 */
export function shade(value, [low, high], diverging) {
  if (diverging) {
    const part = value / high;
    return `color-mix(in srgb, var(${part < 0 ? '--heat-low' : '--heat'}) ${Math.round(Math.abs(part) * 70)}%, transparent)`;
  }
  const part = low < 0 ? value / low : (value - low) / (high - low);
  return `color-mix(in srgb, var(--heat) ${Math.round(Math.min(1, Math.max(0, part)) * 70)}%, transparent)`;
}

/**
 * @param {[number, number]} range
 * @param {Quantity} quantity
 */
export function legend([low, high], quantity) {
  const [left, right] = low < 0 && !quantity.diverging ? [high, low] : [low, high];
  const steps = Array.from({ length: 9 }, (_, i) =>
    shade(left + ((right - left) * i) / 8, [low, high], Boolean(quantity.diverging)),
  );
  const bar = h('span', { class: 'legend-bar', 'aria-hidden': 'true' });
  bar.style.background = `linear-gradient(to right, ${steps.join(', ')})`;
  return h(
    'div',
    { class: 'legend' },
    h('span', {}, short(left)),
    bar,
    h('span', {}, `${short(right)} ${quantity.unit}`),
    h('span', { class: 'muted' }, quantity.note),
  );
}

/**
 * A response as tokens. One tab stop; arrow keys, Home and End move between tokens; `readout` shows the exact value.
 * @param {any} sample
 * @param {Quantity} quantity
 * @param {[number, number]} range
 * @param {Element} readout
 */
export function tokenText(sample, quantity, range, readout) {
  const values = quantity.values(sample);
  const box = h('div', { class: 'tokens', role: 'group', 'aria-label': `Tokens of response ${sample.index}` });
  const make = (/** @type {string} */ token, /** @type {number} */ i) => {
    const value = values[i];
    const known = Number.isFinite(value);
    const text = visible(token);
    const element = h(
      'span',
      {
        class: 'token',
        tabindex: i === 0 ? '0' : '-1',
        role: 'img',
        dataset: { index: i, value: known ? fixed(value) : '' },
        'aria-label': `token ${i + 1} ${JSON.stringify(token)}, ${quantity.label} ${known ? `${fixed(value)} ${quantity.unit}` : 'unknown'}`,
      },
      text,
    );
    if (known) element.style.backgroundColor = shade(value, range, Boolean(quantity.diverging));
    return element;
  };
  box.append(...sample.tokens.slice(0, FIRST_TOKENS).map(make));
  const rest = sample.tokens.length - FIRST_TOKENS;
  if (rest > 0) {
    const button = h('button', { type: 'button', class: 'small' }, `Show ${rest} more tokens`);
    button.addEventListener('click', () =>
      button.replaceWith(
        ...sample.tokens
          .slice(FIRST_TOKENS)
          .map((/** @type {string} */ t, /** @type {number} */ i) => make(t, i + FIRST_TOKENS)),
      ),
    );
    box.append(button);
  }
  const tell = (/** @type {Event} */ event) => {
    const token = /** @type {HTMLElement} */ (event.target).closest?.('.token');
    if (!(token instanceof HTMLElement)) return;
    const i = Number(token.dataset.index);
    const value = values[i];
    say(
      readout,
      `Token ${i + 1} of ${sample.tokens.length} ${JSON.stringify(sample.tokens[i])}: ${quantity.label.toLowerCase()} ${Number.isFinite(value) ? `${fixed(value, 4)} ${quantity.unit}`.trim() : 'unknown'}`,
    );
  };
  box.addEventListener('mouseover', tell);
  box.addEventListener('focusin', tell);
  box.addEventListener('keydown', move);
  return box;
}

/** @param {KeyboardEvent} event */
function move(event) {
  const here = /** @type {HTMLElement} */ (event.target);
  if (!here.classList.contains('token')) return;
  const box = /** @type {HTMLElement} */ (here.parentElement);
  const next = {
    ArrowRight: here.nextElementSibling,
    ArrowLeft: here.previousElementSibling,
    Home: box.firstElementChild,
    End: box.lastElementChild,
  }[event.key];
  if (!(next instanceof HTMLElement)) return;
  event.preventDefault();
  here.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

/** Line breaks and lone spaces are shown, since they are tokens too. @param {string} token */
function visible(token) {
  const text = token.replaceAll('\n', '↵\n').replaceAll('\t', '⇥');
  return text.trim() || text.includes('↵') ? text : text.replaceAll(' ', '␣') || '∅';
}
