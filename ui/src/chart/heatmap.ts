// Distributions over steps: a column for each point, value upwards on a symmetric logarithmic axis, colour for density.

import { type HistogramPoint, num } from "../api";
import * as format from "../format";
import { color, isDark } from "../theme";

const LEFT = 64;
const BOTTOM = 24;
const TOP = 8;

/** Near zero linear, further out logarithmic, on both sides. */
export interface Symlog {
  to: (value: number) => number;
  from: (position: number) => number;
}

export function symlog(threshold: number): Symlog {
  return {
    to: (value) => Math.sign(value) * Math.log10(1 + Math.abs(value) / threshold),
    from: (position) => Math.sign(position) * threshold * (10 ** Math.abs(position) - 1),
  };
}

export interface Bucket {
  low: number;
  high: number;
  count: number;
}

/** Buckets with both ends; the open ones end at the smallest and the largest value, or as wide as their neighbour. */
export function buckets(point: HistogramPoint): Bucket[] {
  const { bounds, counts } = point;
  const found: Bucket[] = [];
  const [min, max] = [num(point.min), num(point.max)];
  for (const [i, count] of counts.entries()) {
    if (!count) continue;
    let low = bounds[i - 1];
    let high = bounds[i];
    if (low === undefined && high === undefined) [low, high] = [min, max];
    else if (low === undefined) low = Number.isFinite(min) ? Math.min(min, high as number) : outward(high as number, bounds[i + 1], -1);
    else if (high === undefined) high = Number.isFinite(max) ? Math.max(max, low) : outward(low, bounds[i - 2], 1);
    if (Number.isFinite(low) && Number.isFinite(high)) found.push({ low: low as number, high: high as number, count });
  }
  return found;
}

function outward(edge: number, neighbour: number | undefined, sign: number): number {
  return edge + sign * (neighbour === undefined ? Math.abs(edge) || 1 : Math.abs(neighbour - edge));
}

/** Where linear turns to logarithmic: below nearly all magnitudes that occur. */
export function threshold(points: HistogramPoint[]): number {
  const sizes: number[] = [];
  for (const point of points) {
    for (const { low, high, count } of buckets(point)) {
      const size = Math.max(Math.abs(low), Math.abs(high));
      if (count && size > 0) sizes.push(size);
    }
  }
  sizes.sort((a, b) => a - b);
  const largest = sizes[sizes.length - 1] ?? 1;
  return Math.max(sizes[Math.floor(sizes.length * 0.05)] ?? 1, largest * 1e-6);
}

export interface Frame {
  left: number;
  right: number;
  low: number;
  high: number;
  scale: Symlog;
}

export function drawHeatmap(canvas: HTMLCanvasElement, points: HistogramPoint[], chosen: number, unit: string): Frame | null {
  const [context, width, height] = prepare(canvas);
  const scale = symlog(threshold(points));
  let low = Number.POSITIVE_INFINITY;
  let high = Number.NEGATIVE_INFINITY;
  let densest = 0;
  const columns = points.map((point) => {
    const found = buckets(point).map(({ low: from, high: to, count }) => {
      const [a, b] = [scale.to(from), scale.to(to)];
      low = Math.min(low, a);
      high = Math.max(high, b);
      const density = count / Math.max(b - a, 1e-9) / Math.max(point.count, 1);
      if (b - a > 1e-6) densest = Math.max(densest, density);
      return { a, b, density };
    });
    return { x: point.x, found };
  });
  if (!(low < high)) {
    if (!(low <= high)) return null;
    low -= 0.5;
    high += 0.5;
  }
  const first = points[0]?.x ?? 0;
  const last = points[points.length - 1]?.x ?? 1;
  const span = width - LEFT - 8;
  const at = (x: number) => LEFT + (span * (x - first)) / (last - first || 1);
  const up = (position: number) => height - BOTTOM - ((height - BOTTOM - TOP) * (position - low)) / (high - low);
  for (const [i, { x, found }] of columns.entries()) {
    const from = i === 0 ? LEFT : (at(columns[i - 1]?.x as number) + at(x)) / 2;
    const to = i === columns.length - 1 ? width - 8 : (at(x) + at(columns[i + 1]?.x as number)) / 2;
    for (const { a, b, density } of found) {
      context.fillStyle = shade(densest ? density / densest : 1);
      context.fillRect(from, up(b) - 0.25, to - from + 0.5, Math.max(up(a) - up(b), 1) + 0.5);
    }
  }
  axisUp(context, scale, low, high, up, width, unit);
  context.fillStyle = color("muted");
  context.textBaseline = "alphabetic";
  const steps = Math.max(2, Math.min(7, Math.floor(span / 90)));
  for (let i = 0; i < steps; i++) {
    const x = first + ((last - first) * i) / (steps - 1);
    context.textAlign = i === 0 ? "left" : i === steps - 1 ? "right" : "center";
    context.fillText(format.number(Math.round(x)), at(x), height - 7);
  }
  const point = points[chosen];
  if (point) {
    context.strokeStyle = color("ink");
    context.lineWidth = 1.5;
    context.strokeRect(Math.min(at(point.x), width - 9), TOP, 0.01, height - BOTTOM - TOP);
  }
  return { left: LEFT, right: width - 8, low, high, scale };
}

export function drawSingle(canvas: HTMLCanvasElement, point: HistogramPoint, frame: Frame, unit: string): void {
  const [context, width, height] = prepare(canvas);
  const { scale, low, high } = frame;
  const along = (position: number) => LEFT + ((width - LEFT - 8) * (position - low)) / (high - low || 1);
  const found = buckets(point);
  const most = Math.max(...found.map(({ count }) => count), 1);
  const floor = height - BOTTOM;
  context.fillStyle = color("series-0");
  for (const { low: from, high: to, count } of found) {
    const left = along(scale.to(from));
    const tall = ((floor - TOP) * count) / most;
    context.fillRect(left, floor - tall, Math.max(along(scale.to(to)) - left - 1, 1.5), tall);
  }
  context.strokeStyle = color("grid");
  context.beginPath();
  context.moveTo(LEFT, floor + 0.5);
  context.lineTo(width - 8, floor + 0.5);
  context.stroke();
  context.fillStyle = color("muted");
  context.textBaseline = "alphabetic";
  context.textAlign = "right";
  context.fillText(format.count(most), LEFT - 6, TOP + 10);
  context.fillText("0", LEFT - 6, floor);
  let previous = Number.NEGATIVE_INFINITY;
  context.textAlign = "center";
  for (const value of ticks(scale, low, high)) {
    const x = along(scale.to(value));
    if (x - previous < 56 || x > width - 20) continue;
    previous = x;
    context.fillText(format.withUnit(value, unit), x, height - 7);
  }
}

/** Powers of ten on both sides, and zero. */
function ticks(scale: Symlog, low: number, high: number): number[] {
  const found: number[] = [];
  const largest = Math.max(Math.abs(scale.from(low)), Math.abs(scale.from(high)));
  for (let power = Math.floor(Math.log10(largest || 1)); power > -300 && found.length < 40; power--) {
    const value = 10 ** power;
    if (scale.to(value) < 0.15) break;
    found.push(value, -value);
  }
  return [...found, 0].filter((value) => scale.to(value) >= low && scale.to(value) <= high).sort((a, b) => a - b);
}

function axisUp(context: CanvasRenderingContext2D, scale: Symlog, low: number, high: number, up: (position: number) => number, width: number, unit: string): void {
  context.textAlign = "right";
  context.textBaseline = "middle";
  let previous = Number.POSITIVE_INFINITY;
  const marks = ticks(scale, low, high);
  // Zero first, so that it is never the one left out.
  for (const value of [0, ...marks.filter((mark) => mark !== 0)]) {
    if (scale.to(value) < low || scale.to(value) > high) continue;
    const y = up(scale.to(value));
    if (value !== 0 && Math.abs(y - previous) < 16) continue;
    if (value !== 0) previous = y;
    else if (marks.length > 1 && low < 0) previous = y;
    context.fillStyle = color("muted");
    context.fillText(format.withUnit(value, unit).replace(/\.0+e/, "e"), LEFT - 6, y);
    context.strokeStyle = color("grid");
    context.lineWidth = 1;
    context.globalAlpha = 0.6;
    context.beginPath();
    context.moveTo(LEFT, Math.round(y) + 0.5);
    context.lineTo(width - 8, Math.round(y) + 0.5);
    context.stroke();
    context.globalAlpha = 1;
  }
}

function prepare(canvas: HTMLCanvasElement): [CanvasRenderingContext2D, number, number] {
  const ratio = devicePixelRatio || 1;
  const width = canvas.clientWidth || 400;
  const height = canvas.clientHeight || 200;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const context = canvas.getContext("2d") as CanvasRenderingContext2D;
  context.scale(ratio, ratio);
  context.clearRect(0, 0, width, height);
  context.font = "11px system-ui, sans-serif";
  return [context, width, height];
}

/** From the panel's colour to a strong one; the root spreads what is rare. */
function shade(share: number): string {
  const t = Math.sqrt(Math.min(1, share));
  return isDark() ? `hsl(${200 - 20 * t} ${55 + 25 * t}% ${14 + 62 * t}%)` : `hsl(${190 + 20 * t} ${50 + 30 * t}% ${95 - 62 * t}%)`;
}
