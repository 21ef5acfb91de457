// Where fields are in a YAML text: by its indentation, so that it works while the text is incomplete.
// @ts-check
import { ITEM } from './schema.js';

/** @typedef {{line: number, path: string[], from: number, to: number, value: string, valueFrom: number}} Entry a field's line: its path, where its text begins and ends, and its value */
/** @typedef {{kind: 'field' | 'value', path: string[], prefix: string, from: number, column: number}} Place `path`: of the section in which a field is written, or of the field whose value is */

const LINE = /^( *)((?:- +)*)(?:(["']?)([A-Za-z_]\w*)\3 *:(?: +|$))?(.*)$/;

/** The sections that are open at a line. */
class Sections {
  constructor() {
    /** @type {{column: number, name: string}[]} */
    this.open = [];
  }

  /** Close what a text at this column is not part of. @param {number} column */
  close(column) {
    while (this.open.length && /** @type {any} */ (this.open.at(-1)).column >= column) this.open.pop();
  }

  /** Go to a line's column; the column of its text. @param {string} spaces @param {string} dashes */
  enter(spaces, dashes) {
    let column = spaces.length;
    for (const dash of dashes.match(/- +/g) ?? []) {
      this.close(column + 0.5); // a list may be at the column of its own field
      this.open.push({ column: column + 0.5, name: ITEM });
      column += dash.length;
    }
    this.close(column);
    return column;
  }

  path() {
    return this.open.map((one) => one.name);
  }
}

/** Read a text's lines. @param {string} text */
function read(text) {
  const sections = new Sections();
  /** @type {Entry[]} */
  const entries = [];
  let from = 0;
  for (const [line, whole] of text.split('\n').entries()) {
    const [, spaces, dashes, , name, value] = /** @type {string[]} */ (/** @type {unknown} */ (LINE.exec(whole)));
    if (whole.trim() !== '' && !whole.trimStart().startsWith('#')) {
      const column = sections.enter(spaces, dashes);
      if (name) {
        sections.open.push({ column, name });
        const shown = value.replace(/(^|\s)#.*$/, '').trimEnd();
        const valueFrom = from + whole.length - value.length;
        entries.push({ line, path: sections.path(), from, to: from + whole.length, value: shown, valueFrom });
      }
    }
    from += whole.length + 1;
  }
  return { entries, sections };
}

/** Every field of a text, in order. @param {string} text @returns {Entry[]} */
export function entriesOf(text) {
  return isJson(text) ? [] : read(text).entries;
}

/** @param {string} text */
function isJson(text) {
  return /^\s*[{[]/.test(text);
}

/** What is being written at an offset; null in comments and in JSON. @param {string} text @param {number} offset @returns {Place | null} */
export function placeAt(text, offset) {
  const start = text.lastIndexOf('\n', offset - 1) + 1;
  const before = text.slice(start, offset);
  if (isJson(text) || /(^|\s)#/.test(before)) return null;
  const { sections } = read(text.slice(0, start));
  const [, spaces, dashes, , name, rest] = /** @type {string[]} */ (/** @type {unknown} */ (LINE.exec(before)));
  const column = sections.enter(spaces, dashes);
  if (name)
    return { kind: 'value', path: [...sections.path(), name], prefix: rest, from: offset - rest.length, column };
  return /^\w*$/.test(rest)
    ? { kind: 'field', path: sections.path(), prefix: rest, from: offset - rest.length, column }
    : null;
}

/** The field on a line, or the section that a line without one is in. @param {string} text @param {number} line */
export function pathAtLine(text, line) {
  const entries = entriesOf(text);
  return (entries.find((one) => one.line === line) ?? entries.findLast((one) => one.line < line))?.path ?? [];
}

/** @param {string} text @param {string[]} path */
export function entryOf(text, path) {
  return entriesOf(text).find((one) => one.path.join('.') === path.join('.'));
}

/** The change that sets a field of a section (replace `from` to `to` by `text`); null where it is not a line of its own. @param {string} text @param {[string, string]} path @param {string} value */
export function changeOf(text, [section, field], value) {
  const there = entryOf(text, [section, field]);
  const head = entryOf(text, [section]);
  const isList = entriesOf(text).some(({ path }) => path.length > 2 && path[0] === section && path[1] === field);
  if (isJson(text) || isList || head?.value) return null;
  if (there) return { from: there.valueFrom, to: there.valueFrom + there.value.length, text: pad(text, there, value) };
  if (head) return { from: head.to, to: head.to, text: `\n  ${field}: ${value}` };
  const break_ = text && !text.endsWith('\n') ? '\n' : '';
  return { from: text.length, to: text.length, text: `${break_}${section}:\n  ${field}: ${value}\n` };
}

/** A value needs a space before it. @param {string} text @param {Entry} entry @param {string} value */
function pad(text, entry, value) {
  return text[entry.valueFrom - 1] === ':' ? ` ${value}` : value;
}
