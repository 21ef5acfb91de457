// A run's server-sent events. Read with fetch and not EventSource, which cannot send the key and hides its failures.
// @ts-check
import { askForKey, credentials, problemOf, runPath } from './api.js';
import { connection } from './connection.js';

/** The API sends a comment every 15 s; silence for longer than this means that the connection is dead. */
const SILENCE_SECONDS = 40;

/** @typedef {{type: string, data: any}} RunEvent */

/**
 * Follow a run's events until `signal` aborts; after a disconnect it resumes after the last event seen.
 * @param {string} runId
 * @param {AbortSignal} signal
 * @param {(events: RunEvent[]) => void} onevents
 * @param {(problem: import('./api.js').Problem) => void} onrefused the API answered, but not with a stream
 */
export async function follow(runId, signal, onevents, onrefused) {
  let lastId = '';
  let failures = 0;
  while (!signal.aborted) {
    try {
      const key = credentials();
      const answer = await open(runId, lastId, key, signal);
      if (answer.status === 401) {
        await askForKey(key);
        continue;
      }
      if (answer.status === 404 || answer.status === 422) return onrefused(await problemOf(answer));
      if (!answer.ok || !answer.body) throw new Error(`status ${answer.status}`);
      failures = 0;
      connection.up();
      await read(answer.body, signal, (events, id) => {
        lastId = id || lastId;
        onevents(events);
      });
    } catch {
      if (signal.aborted) return;
    }
    failures += 1;
    await connection.down(failures, signal);
  }
}

/**
 * @param {string} runId
 * @param {string} lastId
 * @param {Record<string, string>} key
 * @param {AbortSignal} signal
 */
function open(runId, lastId, key, signal) {
  /** @type {Record<string, string>} */
  const headers = { Accept: 'text/event-stream', ...key };
  if (lastId) headers['Last-Event-ID'] = lastId;
  return fetch(`${runPath(runId)}/events`, { headers, signal, cache: 'no-store' });
}

/**
 * @param {ReadableStream<Uint8Array>} body
 * @param {AbortSignal} signal
 * @param {(events: RunEvent[], lastId: string) => void} onevents
 */
async function read(body, signal, onevents) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await inTime(reader.read());
      if (done || signal.aborted) return;
      const blocks = (rest + decoder.decode(value, { stream: true })).split('\n\n');
      rest = blocks.pop() ?? '';
      const parsed = blocks.map(parse);
      const events = parsed.filter((event) => event.data !== null);
      if (events.length) onevents(events, parsed.findLast((event) => event.id)?.id ?? '');
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * @template T
 * @param {Promise<T>} promise
 * @returns {Promise<T>}
 */
function inTime(promise) {
  let timer = 0;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error('silence')), SILENCE_SECONDS * 1000);
  });
  return Promise.race([promise, /** @type {Promise<never>} */ (silence)]).finally(() => clearTimeout(timer));
}

/**
 * One event of the stream's text.
 * @param {string} block
 */
function parse(block) {
  let [id, type, data] = ['', 'message', ''];
  for (const line of block.split('\n')) {
    if (line.startsWith('id: ')) id = line.slice(4);
    else if (line.startsWith('event: ')) type = line.slice(7);
    else if (line.startsWith('data: ')) data += line.slice(6);
  }
  return { id, type, data: data ? JSON.parse(data) : null };
}
