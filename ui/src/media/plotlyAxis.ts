// The axes of a Plotly figure: linear, logarithmic, of categories and of dates.

import * as format from "../base/format";

export type Value = number | string | null;

/** Whether an axis has plain values, its exact range, the places of bars, their lengths, or the rows or columns of a grid of cells. */
export type AxisContent = "values" | "exact" | "bars" | "lengths" | "cells";

const TICKS = 6;
const DAY = 86_400_000;
const YEAR = 365 * DAY;
/** Distances of ticks on an axis of dates, in milliseconds. */
const TIMES = [1000, 5000, 15_000, 60_000, 300_000, 900_000, 3_600_000, 10_800_000, 21_600_000, DAY, 2 * DAY, 7 * DAY, 30 * DAY, 91 * DAY, YEAR];

/** An axis maps values to positions between 0 and 1. */
export interface Axis {
  place: (value: Value) => number;
  ticks: [number, string][];
  /** Whether the ticks are categories. */
  hasNames?: boolean;
}

/** Make an axis for values. `layout` is the axis's part of the figure's layout, and `most` the number of categories with a label. */
export function axisOf(values: Value[], layout: Record<string, unknown>, content: AxisContent, most: number): Axis {
  const axis = readAxis(values.filter((value) => value !== null), layout, content, most);
  if (!String(layout.autorange).includes("reversed")) return axis;
  return { ...axis, place: (value) => 1 - axis.place(value), ticks: axis.ticks.map(([place, label]) => [1 - place, label]) };
}

function readAxis(values: (number | string)[], { type, range }: Record<string, unknown>, content: AxisContent, most: number): Axis {
  if (content === "cells" || type === "category") return categoryAxis(values, most);
  const dates = values.map((value) => (typeof value === "string" && /^\d{4}-\d\d/.test(value) ? Date.parse(value) : Number.NaN));
  if (values.length > 0 && dates.every(Number.isFinite)) return linearAxis(dates, content, true);
  const numbers = values.map((value) => (typeof value === "string" && value.trim() === "" ? Number.NaN : Number(value)));
  if (numbers.some((value, index) => Number.isNaN(value) && typeof values[index] === "string")) return categoryAxis(values, most);
  const finite = numbers.filter(Number.isFinite);
  if (type !== "log" && Array.isArray(range) && range.length === 2 && range.every(Number.isFinite) && range[0] < range[1]) return linearAxis(range, "exact", false);
  return type === "log" ? logAxis(finite) : linearAxis(finite, content, false);
}

function categoryAxis(values: (number | string)[], most: number): Axis {
  const names = [...new Set(values.map(String))];
  const index = new Map(names.map((value, position) => [value, position]));
  const every = Math.ceil(names.length / Math.max(1, most));
  const ticks = names.map((value, position): [number, string] => [(position + 0.5) / names.length, value]).filter((_, position) => position % every === 0);
  return { hasNames: true, ticks, place: (value) => ((index.get(String(value)) ?? Number.NaN) + 0.5) / names.length };
}

function logAxis(numbers: number[]): Axis {
  const positive = numbers.filter((value) => value > 0).map(Math.log10);
  const [low, high] = padded(least(positive), most(positive));
  const ticks: [number, string][] = [];
  const step = Math.max(1, Math.round((high - low) / TICKS));
  for (let power = Math.ceil(low); power <= high && ticks.length < 12; power += step) ticks.push([(power - low) / (high - low), format.number(10 ** power)]);
  return { ticks, place: (value) => (Math.log10(Number(value)) - low) / (high - low) };
}

function linearAxis(numbers: number[], content: AxisContent, isDate: boolean): Axis {
  const [low, high] = rangeOf(numbers, content);
  const rough = (high - low) / TICKS;
  const size = isDate ? (TIMES.find((time) => time >= rough) ?? niceStep(rough / YEAR) * YEAR) : niceStep(rough);
  const ticks: [number, string][] = [];
  for (let value = Math.ceil(low / size) * size; value <= high && ticks.length < 20; value += size) {
    const shown = Math.abs(value) < size / 1e6 ? 0 : value;
    ticks.push([(value - low) / (high - low), isDate ? moment(shown, size) : tick(Number(shown.toPrecision(12)))]);
  }
  const every = isDate ? Math.ceil(ticks.length / 5) : 1;
  return {
    ticks: ticks.filter((_, index) => index % every === 0),
    place: (value) => ((isDate ? Date.parse(String(value)) : value === null ? Number.NaN : Number(value)) - low) / (high - low),
  };
}

/** A number, in scientific notation from 10 million on if that is shorter. */
function tick(value: number): string {
  const [digits, brief] = [format.number(value), value.toExponential().replace("e+", "e").replace("-", "−")];
  return Math.abs(value) >= 1e7 && brief.length < digits.length ? brief : digits;
}

function rangeOf(numbers: number[], content: AxisContent): [number, number] {
  const [low, high] = [least(numbers), most(numbers)];
  if (content === "exact") return [low, high];
  if (content === "bars") return [low - 0.5 * stepOf(numbers), high + 0.5 * stepOf(numbers)];
  return content === "lengths" ? padded(Math.min(0, low), Math.max(0, high), low < 0, high > 0) : padded(low, high);
}

function moment(time: number, size: number): string {
  const date = new Date(time);
  if (Number.isNaN(date.getTime())) return "";
  const words = date.toISOString();
  return size >= DAY ? words.slice(0, 10) : size >= 60_000 ? words.slice(5, 16).replace("T", " ") : words.slice(11, 19);
}

/** The lowest of any number of values; infinity if there are none. */
export const least = (values: number[]) => values.reduce((low, value) => Math.min(low, value), Number.POSITIVE_INFINITY);
export const most = (values: number[]) => values.reduce((high, value) => Math.max(high, value), Number.NEGATIVE_INFINITY);

function padded(low: number, high: number, below = true, above = true): [number, number] {
  if (!(low <= high)) return [0, 1];
  const space = (high - low || Math.abs(high) || 1) * 0.04;
  return [below ? low - space : low, above ? high + space : high];
}

/** The smallest distance between two values; `alone` if there are no two. */
export function stepOf(values: number[], alone = 1): number {
  const sorted = [...new Set(values)].sort((a, b) => a - b);
  const gaps = sorted.slice(1).map((value, index) => value - (sorted[index] as number));
  return gaps.length ? least(gaps) : alone;
}

/** The next larger 1, 2 or 5 times a power of ten. */
export function niceStep(rough: number): number {
  const power = 10 ** Math.floor(Math.log10(rough || 1));
  return ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10) * power;
}
