// The questions of an evaluation: filtered, and each with some of its samples. The address keeps the filter.
// @ts-check

import { call, evaluationPath } from '../api.js';
import { choice, fill, h, table } from '../dom.js';
import { percent, short } from '../format.js';
import { problemBox } from './actions.js';

/** Rows shown at once. */
const PAGE = 200;
const KINDS = /** @type {Record<string, [string, (item: any) => boolean]>} */ ({
  all: ['all', () => true],
  solved: ['solved', (item) => item.num_samples > 0 && item.num_correct * 2 >= item.num_samples],
  unsolved: ['not solved', (item) => item.num_correct * 2 < item.num_samples],
  never: ['never correct', (item) => item.num_samples > 0 && item.num_correct === 0],
  mixed: ['correct and failed samples', (item) => item.num_correct > 0 && item.num_correct < item.num_samples],
  cut: ['with cut samples', (item) => item.num_truncated > 0],
  faults: ['with faults', (item) => item.num_faults > 0],
});

/** @param {{set: string, number: number}} item */
const keyOf = (item) => `${item.set}:${item.number}`;

export class Questions {
  /** @param {string} id @param {URLSearchParams} query @param {AbortSignal} signal @param {() => void} onfilter */
  constructor(id, query, signal, onfilter) {
    this.id = id;
    this.signal = signal;
    this.onfilter = onfilter;
    /** @type {any[]} */
    this.items = [];
    this.shown = PAGE;
    this.filter = { set: query.get('set') ?? '', show: query.get('show') ?? 'all', id: query.get('id') ?? '' };
    /** The question that is open. */
    this.open = query.get('question') ?? '';
    this.filters = h('div', { class: 'filters' });
    this.count = h('p', { class: 'muted', role: 'status' });
    this.list = h('div', {});
    this.element = h('div', { class: 'part' }, this.filters, this.count, this.list);
    this.drawn = '';
  }

  /** The filter and the open question, for the address. */
  query() {
    const { set, show, id } = this.filter;
    const given = { set, show: show === 'all' ? '' : show, id, question: this.open };
    return Object.fromEntries(Object.entries(given).filter(([, value]) => value));
  }

  /** @param {any[]} items */
  take(items) {
    this.items = items;
    const sets = [...new Set(items.map((item) => item.set))];
    if (this.drawn !== sets.join('\n') || !this.filters.children.length) {
      this.drawn = sets.join('\n');
      this.drawFilters(sets);
    }
    this.draw();
  }

  /** @param {string[]} sets */
  drawFilters(sets) {
    const change = (/** @type {object} */ values) => {
      Object.assign(this.filter, values);
      this.shown = PAGE;
      this.onfilter();
      this.draw();
    };
    const options = /** @type {[string, string][]} */ ([['', 'all sets'], ...sets.map((set) => [set, set])]);
    const shows = /** @type {[string, string][]} */ (Object.entries(KINDS).map(([name, [text]]) => [name, text]));
    fill(
      this.filters,
      sets.length > 1 ? choice('Set', options, this.filter.set, (set) => change({ set })) : null,
      choice('Show', shows, this.filter.show, (show) => change({ show })),
      h(
        'label',
        { class: 'field' },
        h('span', {}, 'Id contains'),
        h('input', {
          type: 'search',
          value: this.filter.id,
          oninput: (/** @type {any} */ event) => change({ id: event.target.value.trim() }),
        }),
      ),
    );
  }

  matching() {
    const { set, show, id } = this.filter;
    const fits = (KINDS[show] ?? KINDS.all)[1];
    const text = id.toLowerCase();
    return this.items.filter(
      (item) => (!set || item.set === set) && fits(item) && item.question_id.toLowerCase().includes(text),
    );
  }

  draw() {
    const found = this.matching();
    const shown = found.slice(0, this.shown);
    fill(
      this.count,
      found.length === this.items.length
        ? `${found.length} ${found.length === 1 ? 'question' : 'questions'}.`
        : `${found.length} of ${this.items.length} questions.`,
    );
    if (!shown.length) {
      fill(this.list, h('p', { class: 'muted' }, this.items.length ? 'No question matches.' : 'None judged yet.'));
      return;
    }
    const says = JSON.stringify(shown);
    if (this.list.dataset.says === says) return;
    this.list.dataset.says = says;
    const focused = /** @type {any} */ (document.activeElement)?.dataset?.question;
    const several = new Set(this.items.map((item) => item.set)).size > 1;
    const columns = ['Question', ...(several ? ['Set'] : []), 'Kind', 'Correct', 'Share', 'Tokens', 'Cut', 'Faults'];
    const first = several ? 3 : 2;
    const rows = shown.map((item) => [
      this.button(item),
      ...(several ? [item.set] : []),
      item.kind,
      `${item.num_correct} of ${item.num_samples}`,
      item.num_samples ? percent(item.num_correct / item.num_samples) : '–',
      short(item.num_samples ? Math.round(item.response_tokens / item.num_samples) : undefined),
      item.num_truncated || '–',
      item.num_faults ? h('span', { title: item.fault }, item.num_faults) : '–',
    ]);
    const made = table(
      'Questions',
      columns,
      rows,
      [0, 1, 2, 3, 4].map((index) => first + index),
    );
    fill(
      this.list,
      made,
      found.length > shown.length
        ? h(
            'button',
            {
              type: 'button',
              onclick: () => {
                this.shown += PAGE;
                this.draw();
              },
            },
            `Show more (${found.length - shown.length} left)`,
          )
        : null,
    );
    if (focused) made.querySelector(`[data-question="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
    const open = shown.findIndex((item) => keyOf(item) === this.open);
    if (open >= 0) this.expand(made.querySelectorAll('tbody > tr')[open], shown[open]);
  }

  /** @param {any} item */
  button(item) {
    const key = keyOf(item);
    const made = h(
      'button',
      {
        type: 'button',
        class: 'small',
        'aria-expanded': 'false',
        dataset: { question: key },
        onclick: () => {
          const opened = this.open === key;
          this.close();
          if (!opened) {
            this.open = key;
            this.expand(made.closest('tr'), item);
          }
          this.onfilter();
        },
      },
      item.question_id,
    );
    return made;
  }

  close() {
    this.open = '';
    this.list.querySelector('.opened')?.remove();
    for (const one of this.list.querySelectorAll('[aria-expanded="true"]')) one.setAttribute('aria-expanded', 'false');
  }

  /** @param {Element} row @param {any} item */
  async expand(row, item) {
    row.querySelector('button')?.setAttribute('aria-expanded', 'true');
    const box = h('div', { class: 'question' }, h('p', { class: 'muted' }, 'Loading samples …'));
    row.after(h('tr', { class: 'opened' }, h('td', { colspan: row.children.length }, box)));
    const query = new URLSearchParams({ set: item.set, number: item.number });
    try {
      const found = await call(`${evaluationPath(this.id)}/samples?${query}`, { signal: this.signal });
      fill(box, samplesOf(found, item));
    } catch (error) {
      if (!this.signal.aborted) fill(box, item.fault ? h('p', { class: 'bad' }, item.fault) : null, problemBox(error));
    }
  }
}

/** @param {any} found @param {any} item */
function samplesOf({ prompt, answer, samples }, item) {
  const all = item.num_samples + item.num_faults;
  return [
    h('h3', {}, 'Prompt'),
    h('pre', { tabindex: '0' }, prompt),
    answer ? h('dl', { class: 'facts' }, h('dt', {}, 'Expected'), h('dd', {}, answer)) : null,
    h('h3', {}, samples.length < all ? `${samples.length} of ${all} samples` : 'Samples'),
    h('div', { class: 'samples' }, samples.map(sampleCard)),
  ];
}

/** @param {any} sample */
function sampleCard(sample) {
  const verdict = sample.counts ? (sample.correct ? 'correct' : 'failed') : 'does not count';
  const facts = [`${sample.num_tokens} tokens`];
  if (sample.truncated) facts.push('cut');
  if (sample.counts && ![0, 1].includes(sample.reward)) facts.push(`reward ${short(sample.reward)}`);
  return h(
    'article',
    { class: 'sample' },
    h(
      'header',
      {},
      h('h4', {}, `Sample ${sample.index + 1}`),
      h(
        'span',
        { class: 'badge', dataset: { verdict: sample.counts ? (sample.correct ? 'shown' : 'opposite') : 'none' } },
        h('span', { 'aria-hidden': 'true' }, sample.counts ? (sample.correct ? '✓' : '✕') : '·'),
        ' ',
        verdict,
      ),
      h('span', { class: 'muted' }, facts.join(', ')),
    ),
    h('pre', { tabindex: '0' }, sample.text || '(empty)'),
    sample.feedback ? h('p', { class: 'muted' }, sample.feedback) : null,
    sample.fault ? h('p', { class: 'bad' }, sample.fault) : null,
  );
}
