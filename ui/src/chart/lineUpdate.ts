// Updates of lines: appends the points of a response to the lines that earlier responses have returned.

import type { Line } from "../data/api";
import { type Curve, join, lowerBound, thin } from "./curve";

/** Factor by which a line may exceed the requested number of points before it is thinned. */
const MAX_GROWTH = 4;

/**
 * Append new points, of which `points` were requested per line. Points that a line has already are left out: if the server
 * sampled the first response, the next one may contain some of its points again. If the axis `x` is another metric, none are
 * left out, because many points of a line may share their position and value.
 */
export function merge(before: Line[], fresh: Line[], points: number, x: string): Line[] {
  const lines = new Map(before.map((line) => [key(line), line]));
  for (const line of fresh) {
    const existing = lines.get(key(line));
    lines.set(key(line), existing ? append(existing, x.startsWith("metric:") ? line : unseen(existing, line), points) : line);
  }
  return [...lines.values()];
}

function key(line: Line): string {
  return JSON.stringify([line.run, line.child, line.process, line.kind, line.temporality, line.monotonic, line.scope, line.unit, line.attributes]);
}

/** Append points, and thin the line if it has grown too long, so that a page that is open for days stays small. */
function append(existing: Line, fresh: Line, points: number): Line {
  const curve = join(existing, fresh);
  const thinned = curve.x.length > points * MAX_GROWTH ? thin(curve, points / 2) : curve;
  return { ...existing, ...thinned, total: existing.total + fresh.total };
}

/** The points of a line that another line does not contain. */
function unseen(existing: Curve, fresh: Line): Line {
  const { x, y } = fresh;
  const last = existing.x[existing.x.length - 1];
  if (last === undefined || x.length === 0 || (x[0] as number) > last) return fresh;
  const indices = [...x.keys()].filter((i) => !contains(existing, x[i] as number, y[i] as number));
  if (indices.length === x.length) return fresh;
  const part = (column: Float64Array) => Float64Array.from(indices, (i) => column[i] as number);
  return { ...fresh, x: part(x), y: part(y), total: fresh.total - (x.length - indices.length) };
}

function contains({ x, y }: Curve, at: number, value: number): boolean {
  for (let i = lowerBound(x, at); x[i] === at; i++) if (Object.is(y[i], value)) return true;
  return false;
}
