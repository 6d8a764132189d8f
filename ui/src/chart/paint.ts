// Draws curves on uPlot's canvas: lines, bands, and marks for values that are not finite.

import { type Band, type Curve, isInterrupted } from "./curve";

/** Maps values to pixels along one axis. */
export type Scale = (value: number) => number;

export function scale(min: number, max: number, from: number, to: number, log: boolean): Scale {
  if (log) {
    const low = Math.log10(min);
    const factor = (to - from) / (Math.log10(max) - low);
    return (value) => from + (Math.log10(value) - low) * factor;
  }
  const factor = (to - from) / (max - min);
  return (value) => from + (value - min) * factor;
}

export interface Stroke {
  color: string;
  width: number;
  alpha: number;
  dashed?: boolean | undefined;
}

/**
 * Number of points from which a line is drawn as parallel hairlines. Browsers draw a line of one pixel 30 times faster
 * than a thicker one with joins, and joins are not visible with so many points.
 */
const DENSE = 200;

/** Draw a line with gaps where a value cannot be drawn or recording was interrupted. A single point between gaps becomes a dot. */
export function line(context: CanvasRenderingContext2D, curve: Curve, sx: Scale, sy: Scale, stroke: Stroke): void {
  const { x, y } = curve;
  context.save();
  context.globalAlpha = stroke.alpha;
  context.strokeStyle = context.fillStyle = stroke.color;
  context.lineJoin = "round";
  if (stroke.dashed) context.setLineDash([stroke.width * 4, stroke.width * 3]);
  const path = new Path2D();
  let length = 0;
  const dots: number[] = [];
  let px = 0;
  let py = 0;
  for (let i = 0; i < x.length; i++) {
    const value = y[i] as number;
    const next = sy(value);
    const isDrawable = Number.isFinite(value) && Number.isFinite(next);
    if (!isDrawable || isInterrupted(curve, i)) {
      if (length === 1) dots.push(px, py);
      length = 0;
    }
    if (!isDrawable) continue;
    px = sx(x[i] as number);
    py = next;
    if (length === 0) path.moveTo(px, py);
    else path.lineTo(px, py);
    length++;
  }
  if (length === 1) dots.push(px, py);
  if (x.length < DENSE) {
    context.lineWidth = stroke.width;
    context.stroke(path);
  } else {
    context.lineWidth = 1;
    // Overlapping hairlines would add up if they are not opaque.
    const lines = stroke.alpha < 1 ? 1 : Math.max(1, Math.ceil(stroke.width));
    const gap = lines > 1 ? (stroke.width - 1) / (lines - 1) : 0;
    context.translate(0, (-gap * (lines - 1)) / 2);
    for (let i = 0; i < lines; i++) {
      context.stroke(path);
      if (i < lines - 1) context.translate(0, gap);
    }
    context.translate(0, (-gap * (lines - 1)) / 2);
  }
  context.beginPath();
  for (let i = 0; i < dots.length; i += 2) {
    const at = dots[i] as number;
    context.moveTo(at, dots[i + 1] as number);
    context.arc(at, dots[i + 1] as number, stroke.width * 1.6, 0, 7);
  }
  context.fill();
  context.restore();
}

/** The SVG path of a line with such gaps. */
export function linePath(curve: Curve, sx: Scale, sy: Scale, digits: number): string {
  let path = "";
  let pen = "M";
  for (const [i, value] of curve.y.entries()) {
    const down = sy(value);
    const isDrawable = Number.isFinite(down);
    if (!isDrawable || isInterrupted(curve, i)) pen = "M";
    if (!isDrawable) continue;
    path += `${pen}${sx(curve.x[i] as number).toFixed(digits)} ${down.toFixed(digits)}`;
    pen = "L";
  }
  return path;
}

/** Fill the area between the lowest and highest samples of each pixel column that has several. */
export function envelope(context: CanvasRenderingContext2D, { x, y }: Curve, sx: Scale, sy: Scale, color: string): void {
  const columns: [number, number, number][] = [];
  let column = Number.NaN;
  for (let i = 0; i < x.length; i++) {
    const value = sy(y[i] as number);
    if (!Number.isFinite(value)) continue;
    const at = Math.round(sx(x[i] as number) / 3) * 3;
    const last = columns[columns.length - 1];
    if (at === column && last) {
      if (value < last[1]) last[1] = value;
      if (value > last[2]) last[2] = value;
    } else columns.push([(column = at), value, value]);
  }
  if (x.length < columns.length * 1.5) return;
  context.save();
  context.globalAlpha = 0.16;
  context.fillStyle = color;
  context.beginPath();
  for (const [at, low] of columns) context.lineTo(at, low);
  for (const [at, , high] of columns.reverse()) context.lineTo(at, high);
  context.fill();
  context.restore();
}

export function band(context: CanvasRenderingContext2D, { x, low, high, gaps }: Band, sx: Scale, sy: Scale, color: string, alpha: number): void {
  context.save();
  context.globalAlpha = alpha;
  context.fillStyle = color;
  let from = 0;
  while (from < x.length) {
    while (from < x.length && !drawable(low, high, from, sy)) from++;
    let to = from;
    context.beginPath();
    while (to < x.length && drawable(low, high, to, sy) && !(to > from && isInterrupted({ x, gaps }, to))) context.lineTo(sx(x[to] as number), sy(high[to++] as number));
    for (let i = to - 1; i >= from; i--) context.lineTo(sx(x[i] as number), sy(low[i] as number));
    context.fill();
    from = to;
  }
  context.restore();
}

function drawable(low: Float64Array, high: Float64Array, i: number, sy: Scale): boolean {
  return Number.isFinite(sy(low[i] as number)) && Number.isFinite(sy(high[i] as number));
}

export interface Box {
  left: number;
  top: number;
  width: number;
  height: number;
}

/** Marks for values that are not finite: their number, and SVG paths of those that do not overlap. */
export interface Marks {
  count: number;
  shapes: string[];
}

/** Mark NaN with a cross at the lower edge, and an infinity with a triangle at its edge. `size` is half the size of a mark. */
export function marks({ x, y }: Curve, sx: Scale, { left, top, width, height }: Box, size: number): Marks {
  const shapes: string[] = [];
  let count = 0;
  let previous = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < x.length; i++) {
    const value = y[i] as number;
    if (Number.isFinite(value)) continue;
    count++;
    const px = sx(x[i] as number);
    if (Math.abs(px - previous) < size || px < left || px > left + width) continue;
    previous = px;
    // Marks at the edges of the plot are moved inwards, so that they are complete.
    const at = Math.min(Math.max(px, left + size), left + width - size);
    if (Number.isNaN(value)) {
      const py = top + height - size * 1.5;
      shapes.push(`M${at - size} ${py - size}L${at + size} ${py + size}M${at + size} ${py - size}L${at - size} ${py + size}`);
    } else {
      const tip = value > 0 ? top + 1 : top + height - 1;
      const base = value > 0 ? tip + size * 1.8 : tip - size * 1.8;
      shapes.push(`M${at} ${tip}L${at - size} ${base}L${at + size} ${base}Z`);
    }
  }
  return { count, shapes };
}

export function drawMarks(context: CanvasRenderingContext2D, { shapes }: Marks, color: string, width: number): void {
  context.save();
  context.strokeStyle = context.fillStyle = color;
  context.lineWidth = width;
  for (const shape of shapes) {
    const path = new Path2D(shape);
    context.fill(path);
    context.stroke(path);
  }
  context.restore();
}
