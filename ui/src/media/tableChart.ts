// The chart of a table, as traces of a figure. `tensormeter.conventions.charts` describes charts; any sender may send other values.

import * as format from "../base/format";
import type { Figure } from "./figureView";
import { type Value, least, most } from "./plotlyAxis";
import { type Json, SERIES, type Trace, binsOf, object } from "./plotlyTraces";

const NAMES = {
  line: "line chart",
  bar: "bar chart",
  scatter: "scatter chart",
  histogram: "histogram",
  confusion_matrix: "confusion matrix",
  pr_curve: "precision-recall curve",
  roc_curve: "ROC curve",
};
const MAX_TRACES = 100;
const MAX_CLASSES = 200;
/** Numbers from which horizontal bars are easier to read. */
const [MANY_BARS, LONG_NAME] = [12, 12];
/** Ratio of the highest to the lowest value from which an axis may be logarithmic. */
const DECADES = 1000;
const NOT_FINITE = /^(NaN|-?Infinity)$/;

interface Chart {
  kind: keyof typeof NAMES;
  x: string;
  y: string[];
  series: string | null;
  title: string;
}

/** Read the chart in the body of a table; null if there is none that can be drawn. */
export function readChart(body: Json): Chart | null {
  const { kind, x, y, series, title } = object(body.chart);
  const columns = columnsOf(body);
  const ys = (Array.isArray(y) ? y : [y]).filter((name) => typeof name === "string");
  const found = typeof kind === "string" && Object.hasOwn(NAMES, kind) ? (kind as Chart["kind"]) : null;
  if (!found || typeof x !== "string" || !(ys.length || found === "histogram")) return null;
  if (![x, ...ys, ...(typeof series === "string" ? [series] : [])].every((name) => columns.includes(name))) return null;
  return { kind: found, x, y: ys, series: typeof series === "string" ? series : null, title: typeof title === "string" ? title : "" };
}

/** Make the figure of a chart. `words` receives remarks. */
export function chartFigure(chart: Chart, body: Json, words: string[]): Figure {
  const rows = (Array.isArray(body.rows) ? body.rows : []).filter(Array.isArray) as unknown[][];
  const columns = columnsOf(body);
  const column = (name: string): Value[] => {
    const position = columns.indexOf(name);
    return rows.map((row) => valueOf(row[position]));
  };
  const odd = [chart.x, ...chart.y].reduce((sum, name) => sum + rows.filter((row) => NOT_FINITE.test(String(row[columns.indexOf(name)]))).length, 0);
  if (odd) words.push(`Not drawn: ${format.counted(odd, "NaN or infinite value")}`);
  const kinds = { line: lines, scatter: lines, bar: bars, histogram: histograms, confusion_matrix: confusion, pr_curve: curves, roc_curve: curves };
  const figure = kinds[chart.kind](chart, column, words);
  return { ...figure, name: NAMES[chart.kind] };
}

type Read = (name: string) => Value[];
type Drawn = Omit<Figure, "name">;

const columnsOf = ({ columns }: Json): string[] => (Array.isArray(columns) ? columns.map(String) : []);

function valueOf(cell: unknown): Value {
  if (typeof cell === "number" || typeof cell === "boolean") return typeof cell === "number" ? cell : String(cell);
  return typeof cell === "string" && !NOT_FINITE.test(cell) ? cell : null;
}

const isNumeric = (values: Value[]) => values.every((value) => value === null || typeof value === "number");
const axis = (title: string, more: Json = {}): Json => ({ title, ...more });

function trace(type: string, name: string, index: number, more: Partial<Trace>): Trace {
  const color = `var(--series-${index % SERIES})`;
  return { type, name, x: [], y: [], z: [], color, lines: false, markers: false, dash: false, horizontal: false, base: [], labels: [], ...more };
}

/** The indexes of the rows of each value of the series, in order of their first rows. */
function groups({ series }: Chart, read: Read, rows: number, words: string[]): [string, number[]][] {
  if (series === null) return [["", Array.from({ length: rows }, (_, index) => index)]];
  const byName = new Map<string, number[]>();
  for (const [index, value] of read(series).entries()) {
    const name = value === null ? "none" : String(value);
    const known = byName.get(name);
    if (known) known.push(index);
    else byName.set(name, [index]);
  }
  return limited([...byName], MAX_TRACES, "series", words);
}

/** The first items, with a remark if there are more. */
function limited<T>(items: T[], limit: number, noun: string, words: string[]): T[] {
  if (items.length > limit) words.push(`The first ${limit} of ${format.count(items.length)} ${noun} are drawn`);
  return items.slice(0, limit);
}

/** The name of a line or bar: the value of its series, its column, or both. */
const nameOf = (series: string, y: string, { y: { length } }: Chart) => (series && length > 1 ? `${series} · ${y}` : series || y);

/** The title of an axis with several columns. */
const titleOf = ({ y }: Chart) => (y.length > 1 ? "" : (y[0] ?? ""));

/** Whether a logarithmic axis suits the values: positive, over several decades, and most of them far below the highest. */
function scaleOf(values: Value[]): Json {
  const numbers = values.filter((value) => typeof value === "number");
  if (!isNumeric(values) || !numbers.length || least(numbers) <= 0 || most(numbers) < DECADES * least(numbers)) return {};
  const middle = [...numbers].sort((a, b) => a - b)[numbers.length >> 1] as number;
  return middle < most(numbers) / 10 ? { type: "log" } : {};
}

function lines(chart: Chart, read: Read, words: string[]): Drawn {
  const xs = read(chart.x);
  const ys = chart.y.map(read);
  const isDate = xs.every((x) => typeof x === "string" && /^\d{4}-\d\d/.test(x));
  const isSorted = chart.kind === "line" && (isDate || isNumeric(xs));
  const order = (row: number) => (isDate ? Date.parse(String(xs[row])) : Number(xs[row]));
  const traces = groups(chart, read, xs.length, words).flatMap(([series, rows]) => {
    const places = isSorted ? [...rows].sort((a, b) => order(a) - order(b)) : rows;
    return chart.y.map((name, position): [string, Value[], Value[]] => [nameOf(series, name, chart), places.map((row) => xs[row] ?? null), places.map((row) => ys[position]?.[row] ?? null)]);
  });
  const isLine = chart.kind === "line";
  return {
    traces: limited(traces, MAX_TRACES, "lines", words).map(([name, x, y], index) => trace("scatter", name, index, { x, y, lines: isLine, markers: !isLine || x.length <= 30 })),
    layout: { xaxis: axis(chart.x, scaleOf(xs)), yaxis: axis(titleOf(chart), scaleOf(ys.flat())) },
  };
}

function bars(chart: Chart, read: Read, words: string[]): Drawn {
  const xs = read(chart.x);
  const isNumber = isNumeric(xs);
  const names = [...new Set(xs.map((x) => String(x ?? "none")))];
  if (isNumber) names.sort((a, b) => Number(a) - Number(b));
  const traces = groups(chart, read, xs.length, words).flatMap(([series, rows]) =>
    chart.y.map((name): [string, Value[]] => {
      const values = read(name);
      const sums = new Map<string, number>();
      for (const row of rows) {
        const value = values[row];
        const key = String(xs[row] ?? "none");
        if (typeof value === "number") sums.set(key, (sums.get(key) ?? 0) + value);
      }
      return [nameOf(series, name, chart), names.map((key) => sums.get(key) ?? null)];
    }),
  );
  const horizontal = !isNumber && (names.length > MANY_BARS || names.some(({ length }) => length > LONG_NAME));
  const [category, length] = [axis(chart.x, { type: "category", autorange: horizontal ? "reversed" : "" }), axis(titleOf(chart))];
  return {
    traces: limited(traces, MAX_TRACES, "series", words).map(([name, values], index) => trace("bar", name, index, horizontal ? { x: values, y: names, horizontal } : { x: names, y: values })),
    layout: horizontal ? { xaxis: length, yaxis: category } : { xaxis: category, yaxis: length },
  };
}

function histograms(chart: Chart, read: Read, words: string[]): Drawn {
  const xs = read(chart.x);
  const stated = chart.y[0] === undefined ? null : read(chart.y[0]);
  const series = groups(chart, read, xs.length, words);
  const columns = series.map(([, rows]) => rows.map((row) => xs[row] ?? null));
  const weights = series.map(([, rows]) => rows.map((row) => (stated ? Number(stated[row] ?? 0) || 0 : 1)));
  const { places, labels, counts, isBinned } = binsOf(columns, weights);
  return {
    traces: series.map(([name], index) => trace("bar", name || chart.x, index, { x: places, y: counts[index] ?? [], labels, isBinned })),
    layout: { xaxis: axis(chart.x, isBinned ? {} : { type: "category" }), yaxis: axis(chart.y[0] ?? "count"), barmode: isBinned ? "overlay" : "" },
  };
}

function confusion(chart: Chart, read: Read, words: string[]): Drawn {
  const [predicted, actual] = [read(chart.x), read(chart.y[0] as string)];
  const samples = chart.series === null ? null : read(chart.series);
  const values = [...new Set([...actual, ...predicted])].filter((value) => value !== null);
  if (isNumeric(values)) values.sort((a, b) => Number(a) - Number(b));
  const classes = limited(values, MAX_CLASSES, "classes", words);
  const index = new Map<Value, number>(classes.map((value, position) => [value, position]));
  const counts = classes.map(() => classes.map(() => 0));
  for (const [row, value] of actual.entries()) {
    const [at, of] = [index.get(value), index.get(predicted[row] ?? null)];
    const cells = at === undefined ? undefined : counts[at];
    if (cells && of !== undefined) cells[of] = (cells[of] ?? 0) + (samples ? Number(samples[row] ?? 0) || 0 : 1);
  }
  const shades = counts.map((row) => {
    const total = row.reduce((sum, count) => sum + count, 0);
    return row.map((count) => (total > 0 ? Math.max(0, count / total) : 0));
  });
  words.push("Color: share of the row");
  const unit = chart.series ?? "samples";
  return {
    traces: [trace("heatmap", unit, 0, { x: classes, y: classes, z: counts, shades, unit })],
    layout: { xaxis: axis(chart.x), yaxis: axis(chart.y[0] as string, { autorange: "reversed" }) },
    isSquare: true,
  };
}

/** Precision-recall and ROC curves, with the average precision and the area under the curve. */
function curves(chart: Chart, read: Read, words: string[]): Drawn {
  const isRoc = chart.kind === "roc_curve";
  const [xs, ys] = [read(chart.x), read(chart.y[0] as string)];
  const top = Math.max(1, most([...xs, ...ys].filter((value) => typeof value === "number")));
  const traces = groups(chart, read, xs.length, words).map(([series, rows], index) => {
    const points = rows.map((row) => [xs[row], ys[row]]).filter((point): point is [number, number] => point.every((value) => typeof value === "number"));
    points.sort(([x, y], [otherX, otherY]) => x - otherX || (isRoc ? y - otherY : otherY - y));
    const scaled = points.map(([x, y]): [number, number] => [x / top, y / top]);
    const note = points.length ? `${isRoc ? "AUC" : "AP"} ${format.number(Number((isRoc ? area(scaled) : averagePrecision(scaled)).toFixed(3)))}` : "";
    return trace("scatter", series || chart.title || titleOf(chart), index, { x: points.map(([x]) => x), y: points.map(([, y]) => y), lines: true, note });
  });
  const chance = trace("scatter", "chance", 0, { x: [0, top], y: [0, top], lines: true, dash: true, color: "var(--edge)", isGuide: true });
  const range = [0, top];
  return { traces: isRoc ? [chance, ...traces] : traces, layout: { xaxis: axis(chart.x, { range }), yaxis: axis(titleOf(chart), { range }) }, isSquare: true };
}

/** The area under a ROC curve from (0, 0) to (1, 1), by the trapezoidal rule. */
function area(points: [number, number][]): number {
  const ends: [number, number][] = [[0, 0], ...points, [1, 1]];
  return ends.slice(1).reduce((sum, [x, y], index) => {
    const [before, height] = ends[index] as [number, number];
    return sum + ((x - before) * (y + height)) / 2;
  }, 0);
}

/** The sum of precisions, each weighted by the increase in recall, as in scikit-learn. Of points with one recall, the first is the highest. */
function averagePrecision(points: [number, number][]): number {
  let [sum, before] = [0, 0];
  for (const [recall, precision] of points) {
    sum += (recall - before) * precision;
    before = recall;
  }
  return sum;
}
