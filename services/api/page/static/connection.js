// Shows whether the API answers: a status in the header, and a banner that counts down to the next attempt.
// @ts-check
import { fill, h, say } from './dom.js';

const LONGEST_WAIT_SECONDS = 10;

class Connection {
  constructor() {
    /** @type {'connecting' | 'connected' | 'live' | 'disconnected'} */
    this.state = 'connecting';
    /** @type {Set<() => void>} */
    this.waiting = new Set();
    this.live = false;
  }

  /** Set whether the view that opens follows a stream (`live`) or polls. @param {boolean} live */
  expect(live) {
    this.live = live;
    if (this.state !== 'disconnected') this.show(live ? 'connecting' : 'connected');
  }

  /** The API responded. */
  up() {
    this.show(this.live ? 'live' : 'connected');
    for (const wake of this.waiting) wake();
  }

  /**
   * Show that the API does not answer; resolves when it is time to try again.
   * @param {number} failures consecutive attempts without an answer
   * @param {AbortSignal} signal
   */
  async down(failures, signal) {
    this.show('disconnected');
    const until = Date.now() + Math.min(2 ** (failures - 1), LONGEST_WAIT_SECONDS) * 1000;
    await new Promise((resolve) => {
      const wake = () => {
        clearInterval(timer);
        this.waiting.delete(wake);
        resolve(null);
      };
      const tick = () => {
        const left = Math.ceil((until - Date.now()) / 1000);
        const place = document.getElementById('countdown');
        if (place) say(place, left > 0 ? `Retrying in ${left} s.` : 'Retrying …');
        if (left <= 0 || signal.aborted) wake();
      };
      const timer = setInterval(tick, 250);
      this.waiting.add(wake);
      signal.addEventListener('abort', wake, { once: true });
      tick();
    });
  }

  /** @param {'connecting' | 'connected' | 'live' | 'disconnected'} state */
  show(state) {
    if (state === this.state && document.getElementById('connection')?.textContent) return;
    this.state = state;
    const words = {
      connecting: 'Connecting …',
      connected: 'Connected',
      live: 'Live',
      disconnected: 'Disconnected, retrying',
    };
    const chip = /** @type {HTMLElement} */ (document.getElementById('connection'));
    chip.dataset.state = state;
    say(chip, words[state]);
    const banner = /** @type {HTMLElement} */ (document.getElementById('banner'));
    if (state !== 'disconnected') return fill(banner);
    const retry = () => {
      for (const wake of [...this.waiting]) wake();
    };
    fill(
      banner,
      h(
        'p',
        {},
        h('strong', {}, 'Disconnected, retrying. '),
        'The numbers below are the last ones received. ',
        h('span', { id: 'countdown', 'aria-live': 'off' }),
      ),
      h('button', { type: 'button', onclick: retry }, 'Retry now'),
    );
  }
}

export const connection = new Connection();

/**
 * Poll until `signal` aborts, but only while the page is visible. Failures show as disconnected.
 * @param {number} seconds
 * @param {AbortSignal} signal
 * @param {() => Promise<void>} ask
 * @param {(problem: any) => void} onproblem the API answered with an error
 */
export async function poll(seconds, signal, ask, onproblem) {
  let failures = 0;
  while (!signal.aborted) {
    try {
      if (!document.hidden) await ask();
      failures = 0;
      if (!connection.live) connection.up();
    } catch (error) {
      if (signal.aborted) return;
      const problem = /** @type {any} */ (error);
      if (problem.status !== 0 && problem.status !== 503) {
        onproblem(problem);
        if (!(problem.status >= 500)) return;
      }
      failures += 1;
      if (!connection.live) {
        await connection.down(failures, signal);
        continue;
      }
    }
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, seconds * 1000);
      signal.addEventListener(
        'abort',
        () => {
          clearTimeout(timer);
          resolve(null);
        },
        { once: true },
      );
    });
  }
}
