// The first questions of a run file's data, as its model will read them.
// @ts-check
import { h } from '../dom.js';

/** @param {{questions: any[], note: string}} found */
export function questionsOf({ questions, note }) {
  return h(
    'section',
    { class: 'first-questions', 'aria-label': 'First questions' },
    h('h2', {}, 'As the model reads them'),
    note ? h('p', { class: 'reason' }, note) : null,
    questions.map((one, i) => [
      one.source === questions[i - 1]?.source ? null : h('h3', {}, one.source),
      h(
        'p',
        { class: 'muted' },
        `${one.place} · kind ${one.kind}`,
        one.num_tokens === null ? '' : ` · ${one.num_tokens} tokens`,
      ),
      h('pre', { tabindex: '0', 'aria-label': `Question of ${one.source}, ${one.place}` }, one.text),
      h('p', { class: 'muted' }, 'Answer: ', h('code', {}, one.answer || '(none)')),
    ]),
  );
}
