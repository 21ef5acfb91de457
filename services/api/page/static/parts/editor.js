// The editor of a run file: a text field with line numbers, marks on lines with faults, and completion by the schema.
// @ts-check
import { announce, fill, h } from '../dom.js';
import { suggestionsAt } from './suggestions.js';

/** @typedef {{onchange: () => void, onlook: (line: number) => void, onoffer: (path: string[]) => void}} Listener `onlook`: the line under the cursor or the pointer, from 0; `onoffer`: a field that is chosen among the suggestions */

export class Editor {
  /**
   * @param {Record<string, any>} attributes of the text field
   * @param {Listener} listener
   */
  constructor(attributes, listener) {
    this.listener = listener;
    /** @type {import('./schema.js').RunFileSchema | null} */
    this.schema = null;
    /** @type {import('./suggestions.js').Inputs} */
    this.inputs = { models: [], data: [] };
    /** @type {Map<number, string>} */
    this.faults = new Map();
    /** @type {import('./suggestions.js').Suggestion[]} */
    this.offered = [];
    this.chosen = -1;
    this.lines = h('div', { class: 'lines', 'aria-hidden': 'true' });
    this.list = h('ul', {
      class: 'suggestions',
      id: 'suggestions',
      role: 'listbox',
      'aria-label': 'Suggestions',
      hidden: true,
    });
    this.text = h('textarea', {
      spellcheck: 'false',
      autocapitalize: 'off',
      autocomplete: 'off',
      wrap: 'off',
      'aria-autocomplete': 'list',
      'aria-controls': 'suggestions',
      ...attributes,
      oninput: () => this.#changed(true),
      onkeydown: (/** @type {KeyboardEvent} */ event) => this.#key(event),
      onkeyup: () => {
        if (this.list.hidden) this.listener.onlook(this.line()); // else the chosen suggestion is explained
      },
      onclick: () => {
        this.#close();
        this.listener.onlook(this.line());
      },
      onblur: () => this.#close(),
      onscroll: () => {
        this.lines.scrollTop = this.text.scrollTop;
        if (this.offered.length) this.#place(this.offered[0].from);
      },
      onmousemove: (/** @type {MouseEvent} */ event) => this.listener.onlook(this.#lineAt(event.offsetY)),
      onmouseleave: () => this.listener.onlook(this.line()),
    });
    this.element = h('div', { class: 'editor' }, this.lines, this.text, this.list);
    this.#number();
  }

  get value() {
    return this.text.value;
  }

  /** Replace the whole text. @param {string} text */
  set value(text) {
    this.text.value = text;
    this.text.setSelectionRange(0, 0);
    this.text.scrollTop = 0;
    this.#changed(false);
    this.listener.onlook(0);
  }

  /** The cursor's line, from 0. */
  line() {
    return this.value.slice(0, this.text.selectionStart).split('\n').length - 1;
  }

  /** Replace a part, as if it were typed: it can be undone. @param {{from: number, to: number, text: string}} change */
  replace({ from, to, text }) {
    this.text.focus();
    this.text.setSelectionRange(from, to);
    // The only way that keeps the browser's history of changes; deprecated without a successor.
    if (!document.execCommand('insertText', false, text)) {
      this.text.setRangeText(text, from, to, 'end');
      this.#changed(false);
    }
  }

  /** Mark lines. @param {Map<number, string>} faults by line, from 0 */
  mark(faults) {
    this.faults = faults;
    if (faults.size) this.text.setAttribute('aria-invalid', 'true');
    else this.text.removeAttribute('aria-invalid');
    this.#number();
  }

  /** Select a part and show it. @param {number} from @param {number} to */
  select(from, to) {
    this.text.focus();
    this.text.setSelectionRange(from, to);
    const line = this.value.slice(0, from).split('\n').length - 1;
    this.text.scrollTop = Math.max(0, (line - 4) * this.#lineHeight());
    this.listener.onlook(line);
  }

  /** @param {boolean} typed */
  #changed(typed) {
    this.#number();
    this.listener.onchange();
    if (typed) {
      this.#suggest(false);
      this.listener.onlook(this.line());
    }
  }

  #number() {
    const count = this.value.split('\n').length;
    fill(
      this.lines,
      Array.from({ length: count }, (_, line) => {
        const fault = this.faults.get(line);
        return h('span', { class: fault ? 'fault' : null, title: fault }, String(line + 1));
      }),
    );
    this.lines.scrollTop = this.text.scrollTop;
  }

  #lineHeight() {
    return Number.parseFloat(getComputedStyle(this.text).lineHeight);
  }

  /** @param {number} y inside the text field */
  #lineAt(y) {
    const padding = Number.parseFloat(getComputedStyle(this.text).paddingTop);
    return Math.max(0, Math.floor((y + this.text.scrollTop - padding) / this.#lineHeight()));
  }

  /** Offer what fits the cursor. @param {boolean} asked by keys, so that nothing typed is needed */
  #suggest(asked) {
    const offset = this.text.selectionStart;
    const typed = /[\w./: -]$/.test(this.value.slice(0, offset)) && !/(^|\n)[ -]*$/.test(this.value.slice(0, offset));
    if (!this.schema || this.text.selectionEnd !== offset || !(asked || typed)) return this.#close();
    this.offered = suggestionsAt(this.value, offset, this.schema, this.inputs);
    this.chosen = -1;
    if (!this.offered.length) return this.#close();
    fill(
      this.list,
      this.offered.map((one, i) =>
        h(
          'li',
          {
            id: `suggestion-${i}`,
            role: 'option',
            'aria-selected': 'false',
            onmousedown: (/** @type {Event} */ event) => {
              event.preventDefault(); // the text field keeps the focus
              this.#accept(i);
            },
          },
          one.text,
        ),
      ),
    );
    this.list.hidden = false;
    this.#place(this.offered[0].from);
    announce(`${this.offered.length} suggestions`);
  }

  /** Put the list below a place in the text. @param {number} offset */
  #place(offset) {
    const style = getComputedStyle(this.text);
    const before = this.value.slice(0, offset).split('\n');
    const pen = /** @type {CanvasRenderingContext2D} */ (document.createElement('canvas').getContext('2d'));
    pen.font = style.font;
    const left = this.text.offsetLeft + Number.parseFloat(style.paddingLeft) - this.text.scrollLeft;
    const top = this.text.offsetTop + Number.parseFloat(style.paddingTop) - this.text.scrollTop;
    const x = left + pen.measureText(/** @type {string} */ (before.at(-1))).width;
    this.list.style.left = `${Math.max(0, Math.min(x, this.element.clientWidth - this.list.offsetWidth))}px`;
    this.list.style.top = `${top + before.length * this.#lineHeight() + 2}px`;
  }

  #close() {
    if (this.list.hidden) return;
    this.list.hidden = true;
    this.text.removeAttribute('aria-activedescendant');
    this.offered = [];
  }

  /** @param {number} index */
  #choose(index) {
    this.list.children[this.chosen]?.setAttribute('aria-selected', 'false');
    this.chosen = (index + this.offered.length) % this.offered.length;
    const option = this.list.children[this.chosen];
    option.setAttribute('aria-selected', 'true');
    option.scrollIntoView({ block: 'nearest' });
    this.text.setAttribute('aria-activedescendant', option.id);
    this.listener.onoffer(this.offered[this.chosen].path);
  }

  /** @param {number} index */
  #accept(index) {
    const { from, insert } = this.offered[index];
    this.#close();
    this.replace({ from, to: this.text.selectionStart, text: insert });
    if (/[:\s]$/.test(insert)) this.#suggest(true); // next its value or its first field
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const { key } = event;
    const isOpen = !this.list.hidden;
    let used = true;
    if (key === ' ' && event.ctrlKey) this.#suggest(true);
    else if (isOpen && key === 'Escape') this.#close();
    else if (isOpen && key === 'ArrowDown') this.#choose(this.chosen + 1);
    else if (isOpen && key === 'ArrowUp') this.#choose(this.chosen < 0 ? -1 : this.chosen - 1);
    else if (isOpen && key === 'Enter' && this.chosen >= 0) this.#accept(this.chosen);
    else if (isOpen && key === 'Tab' && !event.shiftKey) this.#accept(Math.max(0, this.chosen));
    else used = false;
    if (used) event.preventDefault();
  }
}
