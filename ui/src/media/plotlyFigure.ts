// Draws Plotly figures without Plotly, whose library is larger than the whole page: lines, markers, bars, histograms and heatmaps on
// linear, logarithmic, category and date axes. Other traces are named, and the figure can be saved as JSON.

import { append, button, h, svg } from "../base/dom";
import * as format from "../base/format";

type Json = Record<string, unknown>;
type Column = (number | string | null)[];

const WIDTH = 640;
const HEIGHT = 360;
const MARGIN = { left: 62, right: 16, top: 14, bottom: 46 };
const MAX_POINTS = 50_000;
const MAX_CELLS = 40_000;
const MAX_TRACES = 100;
const MAX_KEYS = 20;
const TICKS = 6;
const BINS = 30;
const SERIES = 10;
const COLOR = /^(#[0-9a-f]{3,8}|[a-z]{3,20}|(rgb|hsl)a?\([\d.,%\s/]+\))$/i;

interface Trace {
  type: string;
  name: string;
  x: Column;
  y: Column;
  z: Column[];
  color: string;
  lines: boolean;
  markers: boolean;
  dash: boolean;
  horizontal: boolean;
  /** Start of each bar that is stacked on others. */
  base: number[];
}

const object = (value: unknown): Json => (value !== null && typeof value === "object" && !Array.isArray(value) ? (value as Json) : {});
const text = (value: unknown): string => (typeof value === "string" ? value : typeof value === "number" ? String(value) : String(object(value).text ?? ""));

/** Draw a figure, given as JSON. */
export function plotlyFigure(json: string, key: string): HTMLElement {
  const element = h("div", { class: "plotly" });
  const save = button("Save as JSON", () => download(json, key), { class: "quiet" });
  let figure: Json;
  try {
    figure = object(JSON.parse(json));
  } catch {
    append(element, [h("p", { class: "status" }, "This figure is not valid JSON."), save]);
    return element;
  }
  const data = (Array.isArray(figure.data) ? figure.data : []).map(object);
  const traces = data.slice(0, MAX_TRACES).map(readTrace);
  const drawn = traces.filter((trace) => trace !== null);
  const others = data.filter((_, index) => traces[index] === null).map(kindOfTrace);
  const layout = object(figure.layout);
  const title = text(layout.title).replace(/<[^>]*>/g, "");
  const words: string[] = [];
  if (title) append(element, [h("h4", {}, title)]);
  if (drawn.length) append(element, [draw(drawn, layout, title || key, words)]);
  if (!drawn.length && !others.length) words.push("This figure has no data");
  if (data.length > MAX_TRACES) words.push(`${format.count(data.length - MAX_TRACES)} more traces are not drawn here`);
  if (others.length) words.push(`Not drawn here: ${[...new Set(others)].join(", ")}`);
  append(element, [legend(drawn), h("p", { class: "remark" }, words.length ? `${words.join(". ")}. ` : "", save)]);
  return element;
}

function readTrace(trace: Json, index: number): Trace | null {
  const type = text(trace.type) || "scatter";
  if (kindOfTrace(trace) !== type || !DRAWN.has(type)) return null;
  const mode = text(trace.mode);
  const line = object(trace.line);
  const given = [line.color, object(trace.marker).color].find((value) => typeof value === "string" && COLOR.test(value));
  const y = column(trace.y);
  const x = column(trace.x);
  return {
    type,
    name: text(trace.name) || `trace ${index}`,
    x: x.length ? x : y.map((_, place) => place),
    y,
    z: rows(trace.z),
    color: (given as string) ?? `var(--series-${index % SERIES})`,
    lines: mode ? mode.includes("lines") : true,
    markers: mode.includes("markers") || (!mode && y.length <= 20),
    dash: typeof line.dash === "string" && line.dash !== "solid",
    horizontal: trace.orientation === "h",
    base: [],
  };
}

const DRAWN = new Set(["scatter", "scattergl", "bar", "histogram", "heatmap"]);

/** The type of a trace, with what this module does not draw. */
function kindOfTrace(trace: Json): string {
  const type = text(trace.type) || "scatter";
  if (trace.visible === false || trace.visible === "legendonly") return `hidden ${type}`;
  if (text(trace.stackgroup)) return `stacked ${type}`;
  const axes = [trace.xaxis, trace.yaxis].map(text).filter((axis) => axis && axis !== "x" && axis !== "y");
  return axes.length ? `${type} on axis ${axes.join(", ")}` : type;
}

/** Read values: a list, or an array in base64 with its dtype. */
function column(value: unknown): Column {
  if (Array.isArray(value)) return value.map((item) => (typeof item === "number" || typeof item === "string" ? item : typeof item === "boolean" ? Number(item) : null));
  const { dtype, bdata } = object(value);
  return typeof dtype === "string" && typeof bdata === "string" ? decode(dtype, bdata) : [];
}

function rows(value: unknown): Column[] {
  if (Array.isArray(value)) return value.map(column);
  const { shape } = object(value);
  const [height = 0, width = 0] = String(shape ?? "").split(",").map(Number);
  const flat = height && width ? column(value) : [];
  return Array.from({ length: flat.length === height * width ? height : 0 }, (_, row) => flat.slice(row * width, (row + 1) * width));
}

const ARRAYS: Record<string, new (buffer: ArrayBuffer) => ArrayLike<number>> = {
  i1: Int8Array, u1: Uint8Array, i2: Int16Array, u2: Uint16Array, i4: Int32Array, u4: Uint32Array, f4: Float32Array, f8: Float64Array,
};

function decode(dtype: string, bdata: string): Column {
  const kind = ARRAYS[dtype.replace(/^[<|=]/, "")];
  try {
    return kind ? Array.from(new kind(Uint8Array.from(atob(bdata), (letter) => letter.charCodeAt(0)).buffer)) : [];
  } catch {
    return [];
  }
}

/** An axis maps values to positions between 0 and 1. */
interface Axis {
  place: (value: number | string | null) => number;
  ticks: [number, string][];
  title: string;
}

function draw(traces: Trace[], layout: Json, name: string, words: string[]): SVGElement {
  const bars = traces.map((trace) => (trace.type === "histogram" ? binned(trace) : trace));
  const isStacked = layout.barmode === "stack" || layout.barmode === "relative";
  if (isStacked) stack(bars);
  const xs = bars.flatMap((trace) => (trace.horizontal ? ends(trace) : trace.x));
  const hasBars = bars.some(({ type }) => type === "bar");
  const heat = bars.find(({ type }) => type === "heatmap");
  const rowNames: Column = heat ? (heat.y.length ? heat.y : heat.z.map((_, row) => row)) : [];
  const columnNames: Column = heat ? (heat.x.length ? heat.x : (heat.z[0] ?? []).map((_, place) => place)) : [];
  const ys = bars.flatMap((trace) => (trace.horizontal ? trace.y : ends(trace)));
  const xAxis = axisOf(heat ? columnNames : xs, object(layout.xaxis), hasBars && !bars.some(({ horizontal }) => horizontal), heat !== undefined, bars.some(({ horizontal }) => horizontal));
  const yAxis = axisOf(heat ? rowNames : ys, object(layout.yaxis), hasBars && bars.some(({ horizontal }) => horizontal), heat !== undefined, hasBars && !bars.some(({ horizontal }) => horizontal));
  const inner = { width: WIDTH - MARGIN.left - MARGIN.right, height: HEIGHT - MARGIN.top - MARGIN.bottom };
  const px = (value: number | string | null) => MARGIN.left + xAxis.place(value) * inner.width;
  const py = (value: number | string | null) => MARGIN.top + (1 - yAxis.place(value)) * inner.height;
  const marks: SVGElement[] = [];
  for (const [place, label] of yAxis.ticks) {
    const y = MARGIN.top + (1 - place) * inner.height;
    marks.push(svg("line", { x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: y, y2: y, class: "grid" }), svgText(MARGIN.left - 8, y + 4, label, "end"));
  }
  for (const [place, label] of xAxis.ticks) {
    const x = MARGIN.left + place * inner.width;
    marks.push(svg("line", { x1: x, x2: x, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, class: "grid" }), svgText(x, HEIGHT - MARGIN.bottom + 16, label, "middle"));
  }
  if (xAxis.title) marks.push(svgText(MARGIN.left + inner.width / 2, HEIGHT - 8, xAxis.title, "middle"));
  if (yAxis.title) {
    const label = svgText(0, 0, yAxis.title, "middle");
    label.setAttribute("transform", `translate(14 ${MARGIN.top + inner.height / 2}) rotate(-90)`);
    marks.push(label);
  }
  const barTraces = bars.filter(({ type }) => type === "bar");
  const inOne = isStacked || layout.barmode === "overlay";
  for (const trace of bars) {
    if (trace.type === "heatmap") marks.push(...cells(trace, px, py, columnNames, rowNames, inner, words));
    else if (trace.type === "bar") marks.push(...barsOf(trace, inOne ? 0 : barTraces.indexOf(trace), inOne ? 1 : barTraces.length, px, py, inner));
    else marks.push(...lineOf(trace, Math.ceil(MAX_POINTS / bars.length), px, py, words));
  }
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": name }, ...marks);
}

/** Values that an axis must contain: the ends of a trace's bars, or its values. */
const ends = ({ type, base, x, y, horizontal }: Trace): Column =>
  type === "bar" && base.length ? [...base, ...(horizontal ? x : y).map((value, index) => Number(value) + (base[index] ?? 0))] : horizontal ? x : y;

/** Put bars of one category on top of each other, those with negative values below zero. */
function stack(traces: Trace[]): void {
  const tops = new Map<string, number>();
  for (const trace of traces.filter(({ type }) => type === "bar")) {
    const values = trace.horizontal ? trace.x : trace.y;
    trace.base = (trace.horizontal ? trace.y : trace.x).map((category, index) => {
      const value = Number(values[index] ?? 0) || 0;
      const key = `${value < 0} ${category}`;
      const base = tops.get(key) ?? 0;
      tops.set(key, base + value);
      return base;
    });
  }
}

function svgText(x: number, y: number, content: string, anchor: string): SVGElement {
  const element = svg("text", { x, y, "text-anchor": anchor });
  element.textContent = content.replace(/<[^>]*>/g, "").slice(0, 40);
  return element;
}

function axisOf(values: Column, layout: Json, isBar: boolean, isGrid: boolean, fromZero: boolean): Axis {
  const axis = readAxis(values, layout, isBar, isGrid, fromZero);
  if (!text(layout.autorange).includes("reversed")) return axis;
  return { ...axis, place: (value) => 1 - axis.place(value), ticks: axis.ticks.map(([place, label]) => [1 - place, label]) };
}

function readAxis(values: Column, layout: Json, isBar: boolean, isGrid: boolean, fromZero: boolean): Axis {
  const title = text(layout.title);
  const known = values.filter((value) => value !== null);
  const asNumbers = known.map((value) => (typeof value === "number" ? value : value.trim() === "" ? Number.NaN : Number(value)));
  const dates = known.map((value) => (typeof value === "string" && /^\d{4}-\d\d/.test(value) ? Date.parse(value) : Number.NaN));
  const isDate = !isGrid && known.length > 0 && dates.every(Number.isFinite);
  if (isGrid || layout.type === "category" || (!isDate && asNumbers.some((value, index) => Number.isNaN(value) && typeof known[index] === "string"))) {
    const names = [...new Set(known.map(String))];
    const index = new Map(names.map((value, position) => [value, position]));
    const every = Math.ceil(names.length / 12);
    const ticks = names.map((value, position): [number, string] => [(position + 0.5) / names.length, value]).filter((_, position) => position % every === 0);
    return { title, ticks, place: (value) => ((index.get(String(value)) ?? Number.NaN) + 0.5) / names.length };
  }
  const numbers = (isDate ? dates : asNumbers).filter(Number.isFinite);
  if (layout.type === "log") {
    const positive = numbers.filter((value) => value > 0).map(Math.log10);
    const [low, high] = padded(least(positive), most(positive));
    const ticks: [number, string][] = [];
    for (let power = Math.ceil(low); power <= high && ticks.length < 12; power += Math.max(1, Math.round((high - low) / TICKS))) ticks.push([(power - low) / (high - low), format.number(10 ** power)]);
    return { title, ticks, place: (value) => (Math.log10(Number(value)) - low) / (high - low) };
  }
  const low0 = least(numbers);
  const high0 = most(numbers);
  const [low, high] = isBar ? [low0 - 0.5 * stepOf(numbers), high0 + 0.5 * stepOf(numbers)] : fromZero ? padded(Math.min(0, low0), Math.max(0, high0), low0 < 0, high0 > 0) : padded(low0, high0);
  const rough = (high - low) / TICKS;
  const size = isDate ? (TIMES.find((time) => time >= rough) ?? niceStep(rough / YEAR) * YEAR) : niceStep(rough);
  const ticks: [number, string][] = [];
  for (let value = Math.ceil(low / size) * size; value <= high && ticks.length < 20; value += size) {
    const shown = Math.abs(value) < size / 1e6 ? 0 : value;
    ticks.push([(value - low) / (high - low), isDate ? moment(shown, size) : format.number(Number(shown.toPrecision(12)))]);
  }
  const every = isDate ? Math.ceil(ticks.length / 5) : 1;
  return {
    title,
    ticks: ticks.filter((_, index) => index % every === 0),
    place: (value) => ((isDate ? Date.parse(String(value)) : value === null ? Number.NaN : Number(value)) - low) / (high - low),
  };
}

const DAY = 86_400_000;
const YEAR = 365 * DAY;
/** Distances of ticks on an axis of dates, in milliseconds. */
const TIMES = [1000, 5000, 15_000, 60_000, 300_000, 900_000, 3_600_000, 10_800_000, 21_600_000, DAY, 2 * DAY, 7 * DAY, 30 * DAY, 91 * DAY, YEAR];

function moment(time: number, size: number): string {
  const date = new Date(time);
  if (Number.isNaN(date.getTime())) return "";
  const words = date.toISOString();
  return size >= DAY ? words.slice(0, 10) : size >= 60_000 ? words.slice(5, 16).replace("T", " ") : words.slice(11, 19);
}

const least = (values: number[]) => values.reduce((low, value) => Math.min(low, value), Number.POSITIVE_INFINITY);
const most = (values: number[]) => values.reduce((high, value) => Math.max(high, value), Number.NEGATIVE_INFINITY);

function padded(low: number, high: number, below = true, above = true): [number, number] {
  if (!(low <= high)) return [0, 1];
  const space = (high - low || Math.abs(high) || 1) * 0.04;
  return [below ? low - space : low, above ? high + space : high];
}

function stepOf(values: number[]): number {
  const sorted = [...new Set(values)].sort((a, b) => a - b);
  const gaps = sorted.slice(1).map((value, index) => value - (sorted[index] as number));
  return gaps.length ? least(gaps) : 1;
}

function niceStep(rough: number): number {
  const power = 10 ** Math.floor(Math.log10(rough || 1));
  return ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10) * power;
}

function binned(trace: Trace): Trace {
  const source = (trace.x.length && !trace.y.length ? trace.x : trace.horizontal || !trace.x.length ? trace.y : trace.x).filter((value) => value !== null);
  const numbers = source.map(Number).filter(Number.isFinite);
  if (numbers.length < source.length) {
    const counts = new Map<string, number>();
    for (const value of source) counts.set(String(value), (counts.get(String(value)) ?? 0) + 1);
    return { ...trace, type: "bar", x: [...counts.keys()], y: [...counts.values()], horizontal: false };
  }
  const low = least(numbers);
  const size = niceStep((most(numbers) - low) / BINS) || 1;
  const start = Math.floor(low / size) * size;
  const counts: number[] = [];
  for (const value of numbers) {
    const bin = Math.floor((value - start) / size);
    counts[bin] = (counts[bin] ?? 0) + 1;
  }
  const filled = Array.from(counts, (count) => count ?? 0);
  return { ...trace, type: "bar", x: filled.map((_, bin) => Number((start + (bin + 0.5) * size).toPrecision(12))), y: filled, horizontal: false };
}

type Position = (value: number | string | null) => number;

function lineOf(trace: Trace, most: number, px: Position, py: Position, words: string[]): SVGElement[] {
  const every = Math.ceil(trace.y.length / most);
  const remark = `Of long lines, one point in ${every} is drawn`;
  if (every > 1 && !words.includes(remark)) words.push(remark);
  const marks: SVGElement[] = [];
  let path = "";
  let isDown = false;
  for (let index = 0; index < trace.y.length; index += every) {
    const x = px(trace.x[index] ?? null);
    const y = py(trace.y[index] ?? null);
    if (!Number.isFinite(x) || !Number.isFinite(y)) {
      isDown = false;
      continue;
    }
    path += `${isDown ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    isDown = true;
    if (trace.markers) marks.push(svg("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: 3, fill: trace.color }));
  }
  if (trace.lines && path) marks.unshift(svg("path", { d: path, stroke: trace.color, fill: "none", "stroke-width": 1.5, ...(trace.dash ? { "stroke-dasharray": "5 4" } : {}) }));
  return marks;
}

function barsOf(trace: Trace, position: number, of: number, px: Position, py: Position, inner: { width: number; height: number }): SVGElement[] {
  const categories = trace.horizontal ? trace.y : trace.x;
  const at = categories.map((value) => (trace.horizontal ? py(value) : px(value)));
  const slot = Math.min(stepOf(at.filter(Number.isFinite)), (trace.horizontal ? inner.height : inner.width) * 0.9) * (categories.length > 40 ? 1 : 0.82);
  const thick = slot / of;
  return categories.slice(0, Math.ceil(MAX_POINTS / of)).flatMap((category, index) => {
    const value = Number((trace.horizontal ? trace.x : trace.y)[index] ?? Number.NaN);
    const middle = trace.horizontal ? py(category) : px(category);
    const base = trace.base[index] ?? 0;
    const from = trace.horizontal ? px(base) : py(base);
    const to = trace.horizontal ? px(base + value) : py(base + value);
    if (![middle, from, to].every(Number.isFinite)) return [];
    const edge = middle - slot / 2 + position * thick;
    const length = { start: Math.min(from, to), size: Math.max(Math.abs(to - from), 0.5) };
    const place = trace.horizontal ? { x: length.start, y: edge, width: length.size, height: thick } : { x: edge, y: length.start, width: thick, height: length.size };
    return [svg("rect", { ...place, fill: trace.color })];
  });
}

function cells(trace: Trace, px: Position, py: Position, columns: Column, names: Column, inner: { width: number; height: number }, words: string[]): SVGElement[] {
  const width = trace.z[0]?.length ?? 0;
  const height = trace.z.length;
  if (width * height > MAX_CELLS) {
    words.push(`${trace.name}: ${width} × ${height} cells are too many to draw here`);
    return [];
  }
  const numbers = trace.z.flat().map(Number).filter(Number.isFinite);
  const low = least(numbers);
  const range = most(numbers) - low || 1;
  words.push(`Faint: ${format.number(low)}, strong: ${format.number(low + range)}`);
  return trace.z.flatMap((row, y) =>
    row.map((value, x) =>
      svg("rect", {
        x: (px(columns[x] ?? null) - inner.width / width / 2).toFixed(2),
        y: (py(names[y] ?? null) - inner.height / height / 2).toFixed(2),
        width: (inner.width / width + 0.3).toFixed(2),
        height: (inner.height / height + 0.3).toFixed(2),
        fill: value === null ? "none" : trace.color,
        "fill-opacity": value === null ? 0 : (0.06 + 0.94 * ((Number(value) - low) / range)).toFixed(3),
      }),
    ),
  );
}

function legend(traces: Trace[]): HTMLElement | null {
  if (traces.length < 2) return null;
  const item = ({ name, color }: Trace) => h("li", {}, swatch(color), name);
  const more = traces.length > MAX_KEYS ? h("li", { class: "muted" }, `and ${traces.length - MAX_KEYS} more`) : null;
  return h("ul", { class: "keys" }, ...traces.slice(0, MAX_KEYS).map(item), more);
}

function swatch(color: string): SVGElement {
  return svg("svg", { viewBox: "0 0 12 12", width: 12, height: 12, "aria-hidden": "true" }, svg("rect", { width: 12, height: 12, rx: 2, fill: color }));
}

function download(json: string, key: string): void {
  const href = URL.createObjectURL(new Blob([json], { type: "application/json" }));
  const link = h("a", { href, download: `${key.replace(/[^\w.-]/g, "_")}.plotly.json` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}
