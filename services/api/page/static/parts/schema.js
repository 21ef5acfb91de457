// The fields of a run file by its JSON schema: what a section may hold, what a field may be, and what it is for.
// @ts-check

/** @typedef {any} Node a part of the schema */
/** In a path, an item of a list. */
export const ITEM = '[]';

export class RunFileSchema {
  /** @param {Node} root */
  constructor(root) {
    this.root = root;
  }

  /** The part with its references and alternatives opened: the field itself first. @param {Node} node @returns {Node[]} */
  forms(node) {
    if (!node) return [];
    if (node.$ref) {
      const target = this.root.$defs[node.$ref.split('/').at(-1)];
      return this.forms({ ...target, description: node.description ?? target.description, default: node.default });
    }
    return [node, ...(node.anyOf ?? []).flatMap((/** @type {Node} */ one) => this.forms(one))];
  }

  /** The field at a path; undefined if there is none. @param {string[]} path @returns {Node} */
  field(path) {
    let node = this.root;
    for (const name of path) {
      const forms = this.forms(node);
      node = name === ITEM ? forms.find((one) => one.items)?.items : propertiesOf(forms)?.[name];
      if (!node) return undefined;
    }
    return node;
  }

  /** The fields of the section at a path. @param {string[]} path @returns {[string, Node][]} */
  fields(path) {
    return Object.entries(propertiesOf(this.forms(this.field(path))) ?? {});
  }

  /** Whether the field is a section. @param {Node} node */
  isSection(node) {
    return propertiesOf(this.forms(node)) !== undefined;
  }

  /** Every value of a field that has few. @param {Node} node @returns {string[]} */
  values(node) {
    const found = this.forms(node).flatMap((one) => {
      if (one.enum) return one.enum.map(String);
      if ('const' in one) return [String(one.const)];
      return one.type === 'boolean' ? ['true', 'false'] : one.type === 'null' ? ['null'] : [];
    });
    return [...new Set(found)];
  }

  /** What a field may be, in words. @param {Node} node @returns {string} */
  kind(node) {
    const words = this.forms(node).flatMap((one) => {
      if (one.enum) return [`one of ${one.enum.map(String).join(', ')}`];
      if (one.properties) return ['section'];
      if (one.type === 'array') return ['list'];
      return one.type ? [`${WORDS[one.type] ?? one.type}${limits(one)}`] : [];
    });
    const choices = words.find((one) => one.startsWith('one of'));
    return choices ?? [...new Set(words)].join(' or ');
  }
}

const WORDS = /** @type {Record<string, string>} */ ({
  string: 'text',
  boolean: 'true or false',
  object: 'section',
  integer: 'integer',
});
const LARGE = 2 ** 31 - 1;

/** @param {Node[]} forms */
function propertiesOf(forms) {
  return forms.find((one) => one.properties)?.properties;
}

/** @param {Node} node */
function limits({ minimum, maximum, exclusiveMinimum, exclusiveMaximum }) {
  const said = [
    minimum !== undefined ? `from ${minimum}` : exclusiveMinimum !== undefined ? `above ${exclusiveMinimum}` : '',
    maximum !== undefined && maximum < LARGE
      ? `to ${maximum}`
      : exclusiveMaximum !== undefined && exclusiveMaximum < LARGE
        ? `below ${exclusiveMaximum}`
        : '',
  ].filter(Boolean);
  return said.length ? ` ${said.join(' ')}` : '';
}
