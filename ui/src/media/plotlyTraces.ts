// The traces of a Plotly figure: their values, and the bars of histograms and stacks.

import * as format from "../base/format";
import { type Value, least, most, niceStep } from "./plotlyAxis";

export type Json = Record<string, unknown>;
type Column = Value[];

/** Number of colours of series. */
export const SERIES = 10;
const BINS = 30;
const COLOR = /^(#[0-9a-f]{3,8}|[a-z]{3,20}|(rgb|hsl)a?\([\d.,%\s/]+\))$/i;
const DRAWN = new Set(["scatter", "scattergl", "bar", "histogram", "heatmap"]);

export interface Trace {
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
  /** Names of bars in the tooltip, instead of their places. */
  labels: string[];
  /** Whether bars are bins of a histogram, which touch each other. */
  isBinned?: boolean;
  /** Shares from 0 to 1 that shade the cells, instead of their values. */
  shades?: number[][];
  /** Noun for the values of cells. */
  unit?: string;
  /** Result that the legend shows, such as the area under the curve. */
  note?: string;
  /** Whether this is a line for orientation, without a key and values. */
  isGuide?: boolean;
}

export const object = (value: unknown): Json => (value !== null && typeof value === "object" && !Array.isArray(value) ? (value as Json) : {});
/** A text, a number, or the text of a title. */
export const text = (value: unknown): string => (typeof value === "string" ? value : typeof value === "number" ? String(value) : String(object(value).text ?? ""));

/** Read a trace; null if this page does not draw its kind. */
export function readTrace(trace: Json, index: number): Trace | null {
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
    labels: [],
  };
}

/** The type of a trace, with the properties that this page does not draw. */
export function kindOfTrace(trace: Json): string {
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

/** Values that an axis must contain: the ends of a trace's bars, or its values. */
export const ends = ({ type, base, x, y, horizontal }: Trace): Column =>
  type === "bar" && base.length ? [...base, ...(horizontal ? x : y).map((value, index) => Number(value) + (base[index] ?? 0))] : horizontal ? x : y;

/** Put bars of one category on top of each other, those with negative values below zero. */
export function stack(traces: Trace[]): void {
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

export interface Bins {
  /** The middles of the bins, or the categories. */
  places: Value[];
  labels: string[];
  /** Counts in each bin for each column. */
  counts: number[][];
  isBinned: boolean;
}

/** Count values in bins that all columns share: of numbers about 30, of other values one for each. Null is not counted. */
export function binsOf(columns: Column[], weights?: number[][]): Bins {
  const values = columns.flat().filter((value) => value !== null);
  const numbers = values.map(Number).filter(Number.isFinite);
  const isBinned = numbers.length > 0 && numbers.length === values.length;
  const low = least(numbers);
  const size = niceStep((most(numbers) - low) / BINS || (Math.abs(low) || 1) / BINS);
  const start = Math.floor(low / size) * size;
  const names = new Map([...new Set(isBinned ? [] : values.map(String))].map((name, bin) => [name, bin]));
  const edge = (bin: number) => Number((start + bin * size).toPrecision(12));
  const binOf = (value: Value) => (isBinned ? Math.floor((Number(value) - start) / size) : (names.get(String(value)) ?? 0));
  const bins = Array.from({ length: isBinned ? binOf(most(numbers)) + 1 : names.size }, (_, bin) => bin);
  return {
    places: isBinned ? bins.map((bin) => edge(bin + 0.5)) : [...names.keys()],
    labels: isBinned ? bins.map((bin) => `${format.number(edge(bin))} to ${format.number(edge(bin + 1))}`) : [...names.keys()],
    counts: columns.map((column, position) => {
      const counts = bins.map(() => 0);
      for (const [row, value] of column.entries()) if (value !== null) counts[binOf(value)] = (counts[binOf(value)] ?? 0) + (weights?.[position]?.[row] ?? 1);
      return counts;
    }),
    isBinned,
  };
}

/** Replace histograms by bars. */
export function binned(traces: Trace[]): Trace[] {
  const histograms = traces.filter(({ type }) => type === "histogram");
  const columns = histograms.map(({ x, y, horizontal }) => (x.length && !y.length ? x : horizontal || !x.length ? y : x));
  const { places, labels, counts, isBinned } = binsOf(columns);
  return traces.map((trace) => (trace.type === "histogram" ? { ...trace, type: "bar", horizontal: false, x: places, y: counts[histograms.indexOf(trace)] ?? [], labels, isBinned } : trace));
}
