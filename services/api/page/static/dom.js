// Builds elements without parsing HTML: data from a run is only ever inserted as text.
// @ts-check

/** @typedef {Node | string | number | null | undefined | false | any[]} Child */

/**
 * Create an element. `class`, `on*` listeners, `dataset` and plain attributes are supported; null and false are skipped.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...Child} children text becomes text nodes
 * @returns {any}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name === 'dataset') Object.assign(element.dataset, value);
    else if (name === 'value') /** @type {any} */ (element).value = value;
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  append(element, children);
  return element;
}

/**
 * @param {Element} parent
 * @param {Child} child
 */
function append(parent, child) {
  if (Array.isArray(child)) for (const one of child) append(parent, one);
  else if (child instanceof Node) parent.append(child);
  else if (child !== null && child !== undefined && child !== false) parent.append(String(child));
}

/**
 * Replace an element's children.
 * @param {Element} element
 * @param {...Child} children
 */
export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
}

/**
 * Replace an element's children only if what they show differs, so that selections and the focus stay. A link or button
 * that had the focus gets it again, or else the first heading.
 * @param {HTMLElement} element
 * @param {any} says everything that `make` depends on
 * @param {() => Child} make
 */
export function fillIfChanged(element, says, make) {
  const text = JSON.stringify(says);
  if (element.dataset.says === text) return;
  element.dataset.says = text;
  const focused = element.contains(document.activeElement) ? document.activeElement : null;
  fill(element, make());
  if (!focused) return;
  const same = [...element.querySelectorAll(focused.tagName)].find((one) => one.textContent === focused.textContent);
  /** @type {HTMLElement | null} */ (same ?? document.querySelector('h1'))?.focus({ preventScroll: true });
}

/**
 * Save text as a file.
 * @param {string} name
 * @param {string} type
 * @param {string} text
 */
export function save(name, type, text) {
  const href = URL.createObjectURL(new Blob([text], { type }));
  h('a', { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000); // the browser reads it after the click
}

/**
 * Set an element's text only if it differs, so that selections and screen readers are not disturbed.
 * @param {Element} element
 * @param {string} text
 */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Announce a change to screen readers.
 * @param {string} text
 */
export function announce(text) {
  const place = document.getElementById('said');
  if (place) say(place, text);
}

/**
 * A box for a view that is empty, loading or failed.
 * @param {string} kind empty, loading or error
 * @param {string} title
 * @param {...Child} rest
 */
export function notice(kind, title, ...rest) {
  const role = kind === 'error' ? 'alert' : 'status';
  return h('div', { class: `notice ${kind}`, role }, h('h2', {}, title), rest.length ? h('p', {}, rest) : null);
}

/**
 * A view's heading; it receives the focus when the view opens.
 * @param {string} text
 * @param {...Child} rest
 */
export function heading(text, ...rest) {
  return h('h1', { tabindex: '-1' }, text, ...rest);
}

/**
 * A table in a box that scrolls, so that the page never scrolls sideways.
 * @param {string} label
 * @param {Child[]} columns
 * @param {Child[][]} rows
 * @param {number[]} [numeric] indexes of columns with numbers
 */
export function table(label, columns, rows, numeric = []) {
  const kind = (/** @type {number} */ index) => (numeric.includes(index) ? 'number' : null);
  return h(
    'div',
    { class: 'scroll', tabindex: '0', role: 'group', 'aria-label': label },
    h(
      'table',
      {},
      h(
        'thead',
        {},
        h(
          'tr',
          {},
          columns.map((name, i) => h('th', { scope: 'col', class: kind(i) }, name)),
        ),
      ),
      h(
        'tbody',
        {},
        rows.map((row) =>
          h(
            'tr',
            {},
            row.map((cell, i) => h('td', { class: kind(i) }, cell)),
          ),
        ),
      ),
    ),
  );
}

/** Text for screen readers alone. @param {string} text */
export function spoken(text) {
  return h('span', { class: 'said' }, text);
}

/**
 * Show a dialog, which is removed when it closes. The focus returns to where it was, or else to the first heading.
 * @param {HTMLDialogElement} dialog
 */
export function openDialog(dialog) {
  const opener = /** @type {HTMLElement | null} */ (document.activeElement);
  dialog.addEventListener('close', () => {
    dialog.remove();
    if (document.activeElement !== document.body) return;
    const same = [...document.querySelectorAll(opener?.tagName ?? 'h1')].find(
      (one) => one.textContent === opener?.textContent, // it may have been drawn again behind the dialog
    );
    /** @type {HTMLElement | null} */ (same ?? document.querySelector('h1'))?.focus({ preventScroll: true });
  });
  document.body.append(dialog);
  dialog.showModal();
}

/**
 * A labelled drop-down list.
 * @param {string} label
 * @param {[string, string][]} options value and text
 * @param {string} chosen
 * @param {(value: string) => void} onchange
 */
export function choice(label, options, chosen, onchange) {
  const select = h(
    'select',
    { onchange: (/** @type {any} */ event) => onchange(event.target.value) },
    options.map(([value, text]) => h('option', { value, selected: value === chosen }, text)),
  );
  return h('label', { class: 'field' }, h('span', {}, label), select);
}
