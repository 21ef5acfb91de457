// Calls to the REST API: the key, errors as problem documents, and whether the API answers.
// @ts-check

const KEY = 'turnout-key';

/** An error response from the API (RFC 9457), or no response at all (status 0). */
export class Problem extends Error {
  /** @param {{title?: string, status: number, detail?: string, field?: string | null, remedy?: string | null}} body */
  constructor(body) {
    super(body.detail || body.title || 'The API returned an error without details.');
    this.title = body.title || 'Error';
    this.status = body.status;
    this.field = body.field || null;
    this.remedy = body.remedy || null;
  }
}

/** @type {Promise<void> | null} */
let asking = null;
/** Set by the page: asks the user for the key. @type {{ask: (wrong: boolean, optional?: boolean) => Promise<string>}} */
export const keyPrompt = { ask: () => Promise.reject(new Problem({ status: 401, title: 'Unauthorized' })) };

/** @returns {Record<string, string>} */
export function credentials() {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/**
 * Ask for the key once, however many calls were rejected; all of them wait for it.
 * @param {Record<string, string>} used what the rejected call sent; the user is not asked if another call has got a key since
 */
export async function askForKey(used) {
  if (credentials().Authorization !== used.Authorization) return;
  asking ??= keyPrompt
    .ask(sessionStorage.getItem(KEY) !== null)
    .then((key) => {
      sessionStorage.setItem(KEY, key);
      learnRole();
    })
    .finally(() => {
      asking = null;
    });
  await asking;
}

/** Whether a key is in use. */
export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

/** Ask for another key, for a user whose current one lacks a permission. */
export async function changeKey() {
  const key = await keyPrompt.ask(false, true);
  if (key) sessionStorage.setItem(KEY, key);
  return Boolean(key);
}

/**
 * @param {string} path
 * @param {{method?: string, body?: any, headers?: Record<string, string>, signal?: AbortSignal}} [options]
 * @returns {Promise<any>}
 */
export async function call(path, options = {}) {
  for (;;) {
    const used = credentials();
    const answer = await send(path, options, used);
    if (answer.status === 401) {
      await askForKey(used);
      continue;
    }
    if (answer.ok) return answer.status === 204 ? null : answer.json();
    throw await problemOf(answer);
  }
}

/**
 * @param {string} path
 * @param {{method?: string, body?: any, headers?: Record<string, string>, signal?: AbortSignal}} options
 * @param {Record<string, string>} key
 */
async function send(path, options, key) {
  /** @type {Record<string, string>} */
  const headers = { ...options.headers, ...key };
  if (options.body !== undefined) headers['Content-Type'] = 'application/json';
  const body = options.body === undefined ? undefined : JSON.stringify(options.body);
  try {
    return await fetch(path, {
      method: options.method || 'GET',
      headers,
      body,
      signal: options.signal,
      cache: 'no-store',
    });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Problem({
      status: 0,
      title: 'Disconnected',
      detail: 'The API does not answer.',
      remedy: 'Check that it is running: `turnout doctor`.',
    });
  }
}

/**
 * @param {Response} answer
 */
export async function problemOf(answer) {
  try {
    return new Problem({ ...(await answer.json()), status: answer.status });
  } catch {
    return new Problem({
      status: answer.status,
      title: `HTTP ${answer.status}`,
      detail: 'The response did not come from the API.',
    });
  }
}

/** @param {string} id */
export function runPath(id) {
  return `/v1/runs/${encodeURIComponent(id)}`;
}

/** @param {string} id */
export function evaluationPath(id) {
  return `/v1/evaluations/${encodeURIComponent(id)}`;
}

/** @param {string} id */
export function experimentPath(id) {
  return `/v1/experiments/${encodeURIComponent(id)}`;
}

/**
 * All steps of a run after one step.
 * @param {string} id
 * @param {number} after
 * @param {AbortSignal} signal
 */
export async function stepsAfter(id, after, signal) {
  const items = [];
  for (let next = after; next !== null; ) {
    const page = await call(`${runPath(id)}/steps?after=${next}&limit=2000`, { signal });
    items.push(...page.items);
    next = page.next_after;
  }
  return items;
}

/** Learn what the key may do, for the style sheet: it hides what has a class of a role that the key lacks. */
export async function learnRole() {
  const { role } = await call('/v1/role').catch(() => ({ role: 'operate' })); // then the API says what it refuses
  document.body.dataset.role = role;
}

/** A random idempotency key for a request that may be repeated. */
export function requestKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}
