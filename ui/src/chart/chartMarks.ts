// Marks of moments on a chart, such as checkpoints: small ticks at its lower edge.

import * as paint from "./paint";

export interface ChartMark {
  x: number;
  label: string;
  note: string;
}

/** Distance to the pointer within which a mark is named, in pixels. */
export const NEAR = 5;
const HEIGHT = 7;
const WIDTH = 7;

/** Draw a small triangle at the lower edge for each mark. Marks on the same pixel are drawn once. */
export function drawMarks(context: CanvasRenderingContext2D, marks: ChartMark[], sx: (x: number) => number, box: paint.Box, color: string, ratio: number): void {
  const bottom = box.top + box.height;
  const drawn = new Set<number>();
  context.fillStyle = color;
  context.beginPath();
  for (const { x } of marks) {
    const at = Math.round(sx(x));
    if (!(at >= box.left && at <= box.left + box.width) || drawn.has(at)) continue;
    drawn.add(at);
    context.moveTo(at - (WIDTH / 2) * ratio, bottom);
    context.lineTo(at + (WIDTH / 2) * ratio, bottom);
    context.lineTo(at, bottom - HEIGHT * ratio);
    context.closePath();
  }
  context.fill();
}
