// The marks of a figure's traces: lines, points, bars and the cells of heatmaps, and where the pointer finds them.

import { svg } from "../base/dom";
import * as format from "../base/format";
import { type Value, least, most, stepOf } from "./plotlyAxis";
import type { Trace } from "./plotlyTraces";

/** Maximum number of points in a figure. */
export const MAX_POINTS = 20_000;
const MAX_BARS = 5_000;
const MAX_CELLS = 40_000;
/** Smallest cells with a number in them, in pixels. */
const [WIDE, HIGH] = [24, 16];

interface Size {
  width: number;
  height: number;
}

/** A place that has values to show: a point, or a box of half sizes `wide` and `high`. */
export interface Hit {
  x: number;
  y: number;
  wide: number;
  high: number;
  trace: Trace;
  xValue: Value;
  yValue: Value;
  value?: Value;
  note?: string;
}

/** Maps a value to a coordinate. */
type Position = (value: Value) => number;

/** The line and points of a trace, of which about `limit` are drawn. `tally` counts the drawn points and all points. */
export function lineOf(trace: Trace, limit: number, px: Position, py: Position, tally: [number, number], hits: Hit[]): SVGElement[] {
  const places = sampled(trace, limit);
  tally[0] += places.length;
  tally[1] += trace.y.length;
  let [line, dots] = ["", ""];
  let isDown = false;
  for (const index of places) {
    const [xValue, yValue] = [trace.x[index] ?? null, trace.y[index] ?? null];
    const [x, y] = [px(xValue), py(yValue)];
    if (!Number.isFinite(x) || !Number.isFinite(y)) {
      isDown = false;
      continue;
    }
    const at = `${x.toFixed(1)} ${y.toFixed(1)}`;
    line += `${isDown ? "L" : "M"}${at}`;
    dots += `M${at}h0`;
    isDown = true;
    if (!trace.isGuide) hits.push({ x, y, wide: 0, high: 0, trace, xValue, yValue });
  }
  const marks: SVGElement[] = [];
  if (trace.lines && line) marks.push(svg("path", { d: line, class: "line", stroke: trace.color, ...(trace.dash ? { "stroke-dasharray": "5 4" } : {}) }));
  if (trace.markers && dots) marks.push(svg("path", { d: dots, class: places.length > 1000 ? "dots small" : "dots", stroke: trace.color }));
  return marks;
}

/** Indexes of about `limit` points: of each stretch the lowest and the highest one. */
function sampled({ y }: Trace, limit: number): number[] {
  if (y.length <= limit) return y.map((_, index) => index);
  const indexes: number[] = [];
  const size = Math.ceil((2 * y.length) / limit);
  const height = (index: number) => (y[index] === null ? Number.NaN : Number(y[index]));
  for (let start = 0; start < y.length; start += size) {
    let [low, high] = [start, start];
    for (let index = start + 1; index < Math.min(start + size, y.length); index += 1) {
      if (height(index) < height(low) || Number.isNaN(height(low))) low = index;
      if (height(index) > height(high) || Number.isNaN(height(high))) high = index;
    }
    indexes.push(...(low === high ? [low] : [Math.min(low, high), Math.max(low, high)]));
  }
  return indexes;
}

/** The bars of a trace, which share each place with those of `of` - 1 other traces. */
export function barsOf(trace: Trace, position: number, of: number, px: Position, py: Position, inner: Size, words: string[], hits: Hit[]): SVGElement[] {
  const categories = trace.horizontal ? trace.y : trace.x;
  const at = categories.map((value) => (trace.horizontal ? py(value) : px(value)));
  const room = trace.horizontal ? inner.height : inner.width;
  const slot = Math.min(stepOf(at.filter(Number.isFinite), room / 2), room * 0.9) * (trace.isBinned || categories.length > 40 ? 1 : 0.82);
  const thick = slot / of;
  const limit = Math.ceil(MAX_BARS / of);
  if (categories.length > limit) note(words, `The first ${format.count(limit)} of ${format.count(categories.length)} bars are drawn`);
  return categories.slice(0, limit).flatMap((category, index) => {
    const value = Number((trace.horizontal ? trace.x : trace.y)[index] ?? Number.NaN);
    const middle = trace.horizontal ? py(category) : px(category);
    const base = trace.base[index] ?? 0;
    const from = trace.horizontal ? px(base) : py(base);
    const to = trace.horizontal ? px(base + value) : py(base + value);
    if (![middle, from, to].every(Number.isFinite)) return [];
    const edge = middle - slot / 2 + position * thick;
    const length = { start: Math.min(from, to), size: Math.max(Math.abs(to - from), 0.5) };
    const box = trace.horizontal ? { x: length.start, y: edge, width: length.size, height: thick } : { x: edge, y: length.start, width: thick, height: length.size };
    const [wide, high] = [box.width / 2, box.height / 2];
    const [xValue, yValue] = [trace.horizontal ? value : (trace.labels[index] ?? category), trace.horizontal ? category : value];
    hits.push({ x: box.x + wide, y: box.y + high, wide, high, trace, xValue, yValue });
    return [svg("rect", { ...box, fill: trace.color, ...(trace.isBinned ? { class: "bin" } : {}) })];
  });
}

export function cells(trace: Trace, px: Position, py: Position, columns: Value[], names: Value[], inner: Size, words: string[], hits: Hit[]): SVGElement[] {
  const width = trace.z[0]?.length ?? 0;
  const height = trace.z.length;
  if (width * height > MAX_CELLS) {
    note(words, `${trace.name}: ${width} × ${height} cells are too many to draw here`);
    return [];
  }
  const shades = trace.shades ?? trace.z;
  const numbers = shades.flat().map(Number).filter(Number.isFinite);
  const low = trace.shades ? 0 : least(numbers);
  const range = trace.shades ? 1 : most(numbers) - low || 1;
  if (!trace.shades) note(words, `Faint: ${format.number(low)}, strong: ${format.number(low + range)}`);
  const [wide, high] = [inner.width / width / 2, inner.height / height / 2];
  return trace.z.flatMap((row, y) =>
    row.flatMap((value, x) => {
      const [xValue, yValue] = [columns[x] ?? null, names[y] ?? null];
      const [left, top] = [px(xValue) - wide, py(yValue) - high];
      const shade = value === null ? 0 : (Number(shades[y]?.[x]) - low) / range;
      const words = typeof value === "number" ? format.count(value) : "";
      const share = trace.shades ? `${format.number(Number((shade * 100).toPrecision(3)))} % of this row` : "";
      hits.push({ x: left + wide, y: top + high, wide, high, trace, xValue, yValue, value, note: share });
      const cell = svg("rect", {
        x: left.toFixed(2),
        y: top.toFixed(2),
        width: (2 * wide + 0.3).toFixed(2),
        height: (2 * high + 0.3).toFixed(2),
        fill: value === null ? "none" : trace.color,
        "fill-opacity": value === null ? 0 : (0.06 + 0.94 * shade).toFixed(3),
      });
      if (!trace.shades || 2 * wide < Math.max(WIDE, words.length * 7.5) || 2 * high < HIGH) return [cell];
      const number = svg("text", { x: (left + wide).toFixed(1), y: (top + high + 4).toFixed(1), "text-anchor": "middle", class: shade > 0.95 ? "cell strong" : shade > 0.55 ? "cell middle" : "cell" });
      number.textContent = words;
      return [cell, number];
    }),
  );
}

function note(words: string[], remark: string): void {
  if (!words.includes(remark)) words.push(remark);
}
