// Heat map of histograms over steps: one column per point, values on a symmetric logarithmic axis, colour for density.

import * as format from "../base/format";
import { color, isDark } from "../base/theme";
import { type HistogramPoint, toNumber } from "../data/api";

const LEFT = 64;
const BOTTOM = 24;
const TOP = 8;
const ROWS = 64;
/** Share of the values in the linear part of the axis. */
const SMALL_SHARE = 0.1;

/** A symmetric logarithmic scale: linear near zero, logarithmic beyond. */
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

/**
 * Buckets with finite bounds. Open buckets end at the smallest or largest value, or are as wide as their neighbour.
 * As in Prometheus, a first bucket up to 0 holds zeros if the minimum is missing.
 */
export function buckets(point: HistogramPoint): Bucket[] {
  const { bounds, counts } = point;
  const closed: Bucket[] = [];
  const [min, max] = [toNumber(point.min), toNumber(point.max)];
  for (const [i, count] of counts.entries()) {
    if (!count) continue;
    let low = bounds[i - 1];
    let high = bounds[i];
    if (low === undefined && high === undefined) [low, high] = [min, max];
    else if (low === undefined) low = Number.isFinite(min) ? Math.min(min, high as number) : high === 0 ? 0 : outward(high as number, bounds[i + 1], -1);
    else if (high === undefined) high = Number.isFinite(max) ? Math.max(max, low) : outward(low, bounds[i - 2], 1);
    if (Number.isFinite(low) && Number.isFinite(high)) closed.push({ low: low as number, high: high as number, count });
  }
  return closed;
}

function outward(edge: number, neighbour: number | undefined, sign: number): number {
  return edge + sign * (neighbour === undefined ? Math.abs(edge) || 1 : Math.abs(neighbour - edge));
}

/** Magnitude at which the scale turns from linear to logarithmic: below nearly all magnitudes that occur. */
export function threshold(points: HistogramPoint[]): number {
  const sizes: [number, number][] = [];
  let values = 0;
  for (const point of points) {
    for (const { low, high, count } of buckets(point)) {
      const size = Math.max(Math.abs(low), Math.abs(high));
      if (size > 0) {
        sizes.push([size, count]);
        values += count;
      }
    }
  }
  sizes.sort(([a], [b]) => a - b);
  const largest = sizes[sizes.length - 1]?.[0] ?? 1;
  let below = 0;
  for (const [size, count] of sizes) {
    below += count;
    if (below >= values * SMALL_SHARE) return Math.max(size, largest * 1e-6);
  }
  return largest;
}

export interface Frame {
  low: number;
  high: number;
  scale: Symlog;
}

export function drawHeatmap(canvas: HTMLCanvasElement, points: HistogramPoint[], selected: number, unit: string, formatX: (x: number) => string): Frame | null {
  const [context, width, height] = prepare(canvas);
  const scale = symlog(threshold(points));
  let low = Number.POSITIVE_INFINITY;
  let high = Number.NEGATIVE_INFINITY;
  const columns = points.map((point) => {
    const bars = buckets(point).map((bucket) => ({ a: scale.to(bucket.low), b: scale.to(bucket.high), count: bucket.count }));
    for (const { a, b } of bars) {
      low = Math.min(low, a);
      high = Math.max(high, b);
    }
    return { x: point.x, total: Math.max(point.count, 1), bars };
  });
  if (!(low <= high)) return null;
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const shares = columns.map(({ bars, total }) => rows(bars, low, high).map((count) => count / total));
  const densest = Math.max(...shares.map((column) => Math.max(...column)));
  const first = points[0]?.x ?? 0;
  const last = points[points.length - 1]?.x ?? 1;
  const span = width - LEFT - 8;
  const at = (x: number) => LEFT + (span * (x - first)) / (last - first || 1);
  const up = (position: number) => height - BOTTOM - ((height - BOTTOM - TOP) * (position - low)) / (high - low);
  const rowHeight = (height - BOTTOM - TOP) / ROWS;
  for (const [i, { x }] of columns.entries()) {
    const from = i === 0 ? LEFT : (at(columns[i - 1]?.x as number) + at(x)) / 2;
    const to = i === columns.length - 1 ? width - 8 : (at(x) + at(columns[i + 1]?.x as number)) / 2;
    for (const [row, share] of (shares[i] as number[]).entries()) {
      if (share === 0) continue;
      context.fillStyle = shade(share / densest);
      context.fillRect(from, height - BOTTOM - (row + 1) * rowHeight, to - from + 0.5, rowHeight + 0.5);
    }
  }
  drawYAxis(context, scale, low, high, up, unit);
  context.fillStyle = color("muted");
  context.textBaseline = "alphabetic";
  const steps = Math.max(2, Math.min(7, Math.floor(span / 90)));
  for (let i = 0; i < steps; i++) {
    const x = first + ((last - first) * i) / (steps - 1);
    context.textAlign = i === 0 ? "left" : i === steps - 1 ? "right" : "center";
    context.fillText(formatX(x), at(x), height - 7);
  }
  const point = points[selected];
  if (point) {
    context.strokeStyle = color("ink");
    context.lineWidth = 1.5;
    context.strokeRect(Math.min(at(point.x), width - 9), TOP, 0.01, height - BOTTOM - TOP);
  }
  return { low, high, scale };
}

export function drawSingle(canvas: HTMLCanvasElement, point: HistogramPoint, frame: Frame, unit: string): void {
  const [context, width, height] = prepare(canvas);
  const { scale, low, high } = frame;
  const along = (position: number) => LEFT + ((width - LEFT - 8) * (position - low)) / (high - low || 1);
  const bars = buckets(point);
  const largest = Math.max(...bars.map(({ count }) => count), 1);
  const floor = height - BOTTOM;
  context.fillStyle = color("series-0");
  for (const { low: from, high: to, count } of bars) {
    const left = along(scale.to(from));
    const barHeight = ((floor - TOP) * count) / largest;
    context.fillRect(left, floor - barHeight, Math.max(along(scale.to(to)) - left - 1, 1.5), barHeight);
  }
  context.strokeStyle = color("grid");
  context.beginPath();
  context.moveTo(LEFT, floor + 0.5);
  context.lineTo(width - 8, floor + 0.5);
  context.stroke();
  context.fillStyle = color("muted");
  context.textBaseline = "alphabetic";
  context.textAlign = "right";
  context.fillText(format.count(largest), LEFT - 6, TOP + 10);
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

/** Spread the counts of buckets over equal rows of the axis. */
function rows(bars: { a: number; b: number; count: number }[], low: number, high: number): number[] {
  const counts = new Array<number>(ROWS).fill(0);
  const unit = (high - low) / ROWS;
  for (const { a, b, count } of bars) {
    const from = (a - low) / unit;
    const to = Math.max((b - low) / unit, from + 1e-9);
    for (let row = Math.floor(from); row < to && row < ROWS; row++) {
      const covered = Math.min(to, row + 1) - Math.max(from, row);
      counts[row] = (counts[row] as number) + (count * covered) / (to - from);
    }
  }
  return counts;
}

/** Powers of ten on both sides, and zero. */
function ticks(scale: Symlog, low: number, high: number): number[] {
  const values: number[] = [];
  const largest = Math.max(Math.abs(scale.from(low)), Math.abs(scale.from(high)));
  for (let power = Math.floor(Math.log10(largest || 1)); power > -300 && values.length < 40; power--) {
    const value = 10 ** power;
    if (scale.to(value) < 0.15) break;
    values.push(value, -value);
  }
  return [...values, 0].filter((value) => scale.to(value) >= low && scale.to(value) <= high).sort((a, b) => a - b);
}

function drawYAxis(context: CanvasRenderingContext2D, scale: Symlog, low: number, high: number, up: (position: number) => number, unit: string): void {
  context.textAlign = "right";
  context.textBaseline = "middle";
  context.fillStyle = color("muted");
  const labelled: number[] = [];
  // Zero and large values first; labels near zero are dropped if they overlap.
  for (const value of ticks(scale, low, high).sort((a, b) => Number(b === 0) - Number(a === 0) || Math.abs(b) - Math.abs(a))) {
    const y = up(scale.to(value));
    if (labelled.some((other) => Math.abs(other - y) < 16)) continue;
    labelled.push(y);
    context.fillText(format.withUnit(value, unit), LEFT - 8, y);
    context.fillRect(LEFT - 4, Math.round(y), 4, 1);
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

/** Colour of a density, from the panel's colour to a strong one. The square root makes rare values visible. */
function shade(share: number): string {
  const t = Math.sqrt(Math.min(1, share));
  return isDark() ? `hsl(${200 - 20 * t} ${55 + 25 * t}% ${14 + 62 * t}%)` : `hsl(${190 + 20 * t} ${50 + 30 * t}% ${95 - 62 * t}%)`;
}
