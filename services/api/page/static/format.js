// Numbers and times for people, with their units.
// @ts-check

const MISSING = '–';

/**
 * @param {number | null | undefined} value
 * @param {number} [digits] digits after the point
 */
export function fixed(value, digits = 3) {
  return Number.isFinite(value) ? /** @type {number} */ (value).toFixed(digits).replace('-', '−') : MISSING;
}

/**
 * Three significant digits, whatever the size.
 * @param {number | null | undefined} value
 */
export function short(value) {
  if (!Number.isFinite(value)) return MISSING;
  const number = /** @type {number} */ (value);
  const size = Math.abs(number);
  if (size !== 0 && (size < 0.001 || size >= 1e9)) return number.toExponential(2).replace('-', '−');
  if (size >= 1e6) return `${fixed(number / 1e6, 2)} M`;
  if (size >= 1e4) return `${fixed(number / 1e3, 1)} k`;
  if (size >= 100 || Number.isInteger(number)) return String(Math.round(number)).replace('-', '−');
  return fixed(number, size >= 10 ? 1 : size >= 1 ? 2 : 3);
}

/**
 * A share as a percentage.
 * @param {number | null | undefined} value 0 to 1
 */
export function percent(value) {
  return Number.isFinite(value) ? `${fixed(/** @type {number} */ (value) * 100, 1)}%` : MISSING;
}

/**
 * @param {number | null | undefined} value
 * @param {string} unit
 */
export function withUnit(value, unit) {
  return Number.isFinite(value) ? `${short(value)} ${unit}`.trim() : MISSING;
}

/**
 * @param {number | null | undefined} seconds
 */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return MISSING;
  const value = Math.max(0, /** @type {number} */ (seconds));
  if (value < 0.1) return `${Math.round(value * 1000)} ms`;
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 60) return `${Math.round(value)} s`;
  const minutes = Math.floor(value / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(value % 60)} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/**
 * @param {number} at Unix seconds
 */
export function ago(at) {
  const seconds = Date.now() / 1000 - at;
  if (seconds < 5) return 'just now';
  return `${seconds < 60 ? duration(seconds) : duration(seconds).split(' ').slice(0, 2).join(' ')} ago`;
}

/**
 * @param {number} at Unix seconds
 */
export function clock(at) {
  return new Date(at * 1000).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit' });
}

/**
 * @param {number} bytes
 */
export function size(bytes) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${short(value)} ${units[unit]}`;
}
