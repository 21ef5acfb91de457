// Charts by plotly.js, in the page's colours, light or dark.
// @ts-check
import { h, save, say } from '../dom.js';
import { csvOf } from './csv.js';

/** @typedef {{name: string, x: (number | null)[], y: (number | null)[], color?: number, dash?: string, symbol?: string, ink?: string, kind?: 'lines' | 'points' | 'area' | 'bars', hover?: string, width?: number, right?: boolean, unit?: string, low?: (number | null)[], high?: (number | null)[]}} Series `low` and `high`: a band around `y` */
/** @typedef {{unit?: string, rightUnit?: string, xTitle?: string, zero?: boolean, stacked?: boolean, empty?: string, log?: boolean}} Axes */

const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif';
const CONFIG = { displayModeBar: false, displaylogo: false, responsive: true, doubleClick: 'reset' };

const RETRY_MILLISECONDS = 3000;

/** For charts whose series must differ in more than their colour. */
export const DASHES = ['solid', 'dash', 'dot', 'dashdot', 'longdash'];
export const SYMBOLS = ['circle', 'diamond', 'square', 'triangle-up', 'cross', 'x'];

/** @type {Promise<any> | null} */
let loading = null;

/** plotly.js is large, so it is loaded when the first chart needs it. @returns {Promise<any>} */
export function loadPlotly() {
  loading ??= new Promise((resolve, reject) => {
    const meta = /** @type {HTMLMetaElement} */ (document.querySelector('meta[name=turnout-plotly]'));
    const script = h('script', { src: meta.content, onload: () => resolve(/** @type {any} */ (window).Plotly) });
    script.onerror = () => {
      loading = null;
      script.remove();
      reject(new Error('plotly.js did not load'));
    };
    document.head.append(script);
  });
  return loading;
}

/** @type {Set<{redraw: () => void}>} */
const drawn = new Set();
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
  for (const chart of drawn) chart.redraw();
});

/** @param {string} name a custom property of the style sheet */
export function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** The n-th colour of a series. @param {number} index */
export function seriesColor(index) {
  return color(`--series-${(index % 8) + 1}`);
}

/** @param {Series} series @param {number} index @param {Axes} axes */
function trace(series, index, axes) {
  const ink = series.ink ? color(series.ink) : seriesColor(series.color ?? index);
  const kind = series.kind ?? 'lines';
  const unit = series.unit ?? axes.unit;
  const value = unit === 'share' ? '%{y:.1%}' : `%{y:.4~g}${unit ? ` ${unit}` : ''}`;
  /** @type {any} */
  const made = {
    name: series.name,
    x: series.x,
    y: series.y,
    hovertemplate: series.hover ?? value,
    connectgaps: false,
    yaxis: series.right ? 'y2' : 'y',
  };
  if (kind === 'bars') return { ...made, type: 'bar', marker: { color: ink, line: { width: 0 } } };
  made.type = 'scatter';
  made.mode = kind === 'points' ? 'lines+markers' : series.x.length === 1 ? 'markers' : 'lines';
  made.line = { color: ink, width: series.width ?? 1.8, dash: series.dash ?? 'solid' };
  made.marker = { color: ink, size: 7, symbol: series.symbol ?? 'circle' };
  if (kind === 'area')
    Object.assign(made, { stackgroup: 'one', fillcolor: `${ink}b0`, line: { color: ink, width: 1 } });
  return made;
}

/** The series' band, if it has one: a line that cannot be seen, and one that is filled down to it. @param {Series} series @param {number} index */
function band({ name, x, low, high, color }, index) {
  if (!low || !high) return [];
  const edge = { name, x, type: 'scatter', mode: 'lines', line: { width: 0 }, hoverinfo: 'skip', showlegend: false };
  return [
    { ...edge, y: low },
    { ...edge, y: high, fill: 'tonexty', fillcolor: `${seriesColor(color ?? index)}26` },
  ];
}

/** @param {string | undefined} unit @param {string} ink */
function scale(unit, ink) {
  const title = unit === 'share' ? '' : (unit ?? '');
  return {
    title: { text: title, font: { size: 11, color: ink }, standoff: 6 },
    tickformat: unit === 'share' ? '.2~%' : undefined,
  };
}

/** @param {Axes} axes */
function layout(axes) {
  const [ink, grid] = [color('--muted'), color('--grid')];
  const axis = {
    gridcolor: grid,
    zerolinecolor: grid,
    linecolor: grid,
    tickfont: { color: ink, size: 11 },
    automargin: true,
    fixedrange: false,
  };
  return {
    paper_bgcolor: 'rgba(0,0,0,0)',
    plot_bgcolor: 'rgba(0,0,0,0)',
    font: { family: FONT, size: 12, color: ink },
    margin: { l: 44, r: 8, t: 6, b: 34 },
    showlegend: true,
    hovermode: 'x unified',
    uirevision: axes.log ? 'logarithmic' : 'linear', // a zoom is kept until the axis changes
    barmode: 'stack',
    bargap: 0.15,
    legend: {
      orientation: 'h',
      x: 0,
      y: 1.02,
      yanchor: 'bottom',
      traceorder: 'normal',
      font: { size: 11.5, color: color('--ink') },
    },
    hoverlabel: {
      bgcolor: color('--raised'),
      bordercolor: grid,
      font: { color: color('--ink'), family: FONT, size: 12 },
    },
    xaxis: {
      ...axis,
      title: { text: axes.xTitle ?? 'training step', font: { size: 11, color: ink }, standoff: 6 },
      zeroline: false,
    },
    yaxis: {
      ...axis,
      ...scale(axes.unit, ink),
      type: axes.log && !axes.stacked ? 'log' : 'linear',
      rangemode: axes.zero === false ? 'normal' : 'tozero',
      range: axes.stacked && axes.unit === 'share' ? [0, 1] : undefined,
    },
    yaxis2: {
      ...axis,
      ...scale(axes.rightUnit, ink),
      overlaying: 'y',
      side: 'right',
      rangemode: 'tozero',
      showgrid: false,
    },
    dragmode: 'zoom',
  };
}

/** One chart with its title and a sentence that says how to read it. */
export class Chart {
  /**
   * @param {string} title
   * @param {string} caption
   * @param {Axes} [axes]
   */
  constructor(title, caption, axes = {}) {
    this.axes = axes;
    /** @type {Series[]} */
    this.series = [];
    this.plot = h('div', { class: 'plot', role: 'img', 'aria-label': `${title}: no data yet` });
    this.empty = h('p', { class: 'chart-empty' }, axes.empty ?? 'No data yet');
    this.title = title;
    this.download = h(
      'button',
      {
        type: 'button',
        class: 'small',
        hidden: true,
        'aria-label': `Download data of ${title} as CSV`,
        onclick: () => save(`${title}.csv`, 'text/csv', csvOf(axes.xTitle ?? 'training step', this.series)),
      },
      'CSV',
    );
    this.element = h(
      'figure',
      { class: 'card chart', dataset: { chart: title } },
      h('figcaption', {}, h('h2', {}, title), this.download, h('p', {}, caption)),
      h('div', { class: 'plot-box' }, this.plot, this.empty),
    );
    drawn.add(this);
  }

  /**
   * @param {Series[]} series
   * @param {string} summary the newest values in words, for screen readers
   */
  draw(series, summary) {
    this.series = series.filter((one) => one.y.some((value) => value !== null));
    this.plot.setAttribute('aria-label', `${this.title}: ${this.series.length ? summary : 'no data yet'}`);
    this.empty.hidden = this.series.length > 0;
    this.download.hidden = !this.series.length;
    return this.redraw();
  }

  async redraw() {
    if (!this.series.length) return;
    try {
      const plotly = await loadPlotly();
      if (!this.plot.isConnected) return;
      await plotly.react(
        this.plot,
        this.series.flatMap((one, i) => [...band(one, i), trace(one, i, this.axes)]),
        layout(this.axes),
        CONFIG,
      );
      this.empty.hidden = true;
    } catch {
      this.empty.hidden = false;
      say(this.empty, 'The chart library did not load; retrying.');
      setTimeout(() => {
        if (this.plot.isConnected) this.redraw();
      }, RETRY_MILLISECONDS);
    }
  }

  close() {
    drawn.delete(this);
    /** @type {any} */ (window).Plotly?.purge(this.plot);
  }
}
