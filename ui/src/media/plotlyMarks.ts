// The marks of a Plotly figure's traces: lines, points, bars and the cells of heatmaps.

import { svg } from "../base/dom";
import * as format from "../base/format";
import { type Value, least, most, stepOf } from "./plotlyAxis";
import type { Trace } from "./plotlyTraces";

/** Maximum number of points or bars in a figure. */
export const MAX_POINTS = 50_000;
const MAX_CELLS = 40_000;

interface Size {
  width: number;
  height: number;
}

/** Maps a value to a coordinate. */
type Position = (value: Value) => number;

/** The line and points of a trace, of which at most `limit` are drawn. */
export function lineOf(trace: Trace, limit: number, px: Position, py: Position, words: string[]): SVGElement[] {
  const every = Math.ceil(trace.y.length / limit);
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

/** The bars of a trace, which share each place with those of `of` - 1 other traces. */
export function barsOf(trace: Trace, position: number, of: number, px: Position, py: Position, inner: Size): SVGElement[] {
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

export function cells(trace: Trace, px: Position, py: Position, columns: Value[], names: Value[], inner: Size, words: string[]): SVGElement[] {
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
