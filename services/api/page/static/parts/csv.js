// A chart's data as CSV.
// @ts-check

/**
 * One row per place on the axis, one column per series; a band adds its edges.
 * @param {string} xTitle
 * @param {import('./chart.js').Series[]} series
 */
export function csvOf(xTitle, series) {
  const columns = series.flatMap(({ name, x, y, low, high }) => [
    { name, x, y },
    ...(low && high
      ? [
          { name: `${name} low`, x, y: low },
          { name: `${name} high`, x, y: high },
        ]
      : []),
  ]);
  const values = columns.map(({ x, y }) => new Map(x.map((place, i) => [place, y[i]])));
  const places = [...new Set(columns.flatMap(({ x }) => x))].sort((a, b) => Number(a) - Number(b));
  const rows = [
    [xTitle, ...columns.map(({ name }) => name)],
    ...places.map((place) => [place, ...values.map((column) => column.get(place) ?? '')]),
  ];
  return rows.map((row) => `${row.map(cell).join(',')}\r\n`).join('');
}

/** One value, quoted if necessary (RFC 4180). @param {unknown} value */
function cell(value) {
  const text = String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
