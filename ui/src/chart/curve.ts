// Mathematics on curves: smoothing, means over runs, ranges.

export interface Curve {
  x: Float64Array;
  y: Float64Array;
  /** Positions where recording was interrupted, ascending: points a and b are not connected if a.x <= gap < b.x. */
  gaps?: Float64Array | undefined;
}

export interface Band {
  x: Float64Array;
  low: Float64Array;
  middle: Float64Array;
  high: Float64Array;
  /** Gaps, as in `Curve`. */
  gaps?: Float64Array | undefined;
}

/**
 * Exponential moving average, debiased, so that it starts at the first value and not near zero.
 *
 * The weight applies per thousandth of the range and is raised to the distance between points, so the shape does not
 * depend on how many points the server left out. NaN and infinities are skipped.
 */
export function smooth({ x, y }: Curve, weight: number): Float64Array {
  const result = new Float64Array(y.length);
  const first = x[0] ?? 0;
  const unit = ((x[x.length - 1] ?? 0) - first) / 1000 || 1;
  let mean = 0;
  let mass = 0;
  let previous = first;
  for (let i = 0; i < y.length; i++) {
    const value = y[i] as number;
    if (!Number.isFinite(value)) {
      result[i] = Number.NaN;
      continue;
    }
    const at = x[i] as number;
    const decay = weight ** Math.max((at - previous) / unit, 1e-3);
    // Earlier points decay with the distance to the new one.
    mean = mean * decay + value * (1 - decay);
    mass = mass * decay + (1 - decay);
    previous = at;
    result[i] = mass > 0 ? mean / mass : value;
  }
  return result;
}

/** Number of common positions of curves that do not share theirs. */
const POSITIONS = 400;

/**
 * Mean, minimum and maximum of several curves at common positions, interpolated linearly. Minimum and maximum include every
 * value: a value between two positions counts at the nearer one. There is no value where all curves have a gap.
 */
export function aggregate(curves: Curve[]): Band {
  let start = Number.POSITIVE_INFINITY;
  let stop = Number.NEGATIVE_INFINITY;
  for (const { x } of curves) {
    if (x.length === 0) continue;
    start = Math.min(start, x[0] as number);
    stop = Math.max(stop, x[x.length - 1] as number);
  }
  const shared = sharedPositions(curves);
  const n = shared ? shared.length : Number.isFinite(start) ? (stop > start ? POSITIONS : 1) : 0;
  const x = shared ?? Float64Array.from({ length: n }, (_, i) => start + ((stop - start) * i) / Math.max(n - 1, 1));
  const low = new Float64Array(n).fill(Number.POSITIVE_INFINITY);
  const high = new Float64Array(n).fill(Number.NEGATIVE_INFINITY);
  const middle = new Float64Array(n);
  const counts = new Float64Array(n);
  const inGap = new Uint8Array(n);
  for (const curve of curves) {
    let j = 0;
    const end = curve.x.length - 1;
    for (let i = 0; i < n; i++) {
      const at = x[i] as number;
      if (end < 0 || at < (curve.x[0] as number) || at > (curve.x[end] as number)) continue;
      while (j < end && (curve.x[j + 1] as number) <= at) j++;
      if (j < end && curve.x[j] !== at && interrupted(curve, curve.x[j] as number, curve.x[j + 1] as number)) {
        inGap[i] = 1;
        continue;
      }
      const value = between(curve, j, at);
      if (!Number.isFinite(value)) continue;
      low[i] = Math.min(low[i] as number, value);
      high[i] = Math.max(high[i] as number, value);
      middle[i] = (middle[i] as number) + value;
      counts[i] = (counts[i] as number) + 1;
    }
  }
  if (!shared && n > 1) {
    const step = (stop - start) / (n - 1);
    for (const curve of curves) {
      for (let j = 0; j < curve.x.length; j++) {
        const value = curve.y[j] as number;
        if (!Number.isFinite(value)) continue;
        const i = Math.round(((curve.x[j] as number) - start) / step);
        low[i] = Math.min(low[i] as number, value);
        high[i] = Math.max(high[i] as number, value);
      }
    }
  }
  for (let i = 0; i < n; i++) {
    const count = counts[i] as number;
    middle[i] = count ? (middle[i] as number) / count : Number.NaN;
    if (!count) low[i] = high[i] = Number.NaN;
  }
  const band = { x, low, middle, high };
  return curves.some(({ gaps }) => gaps?.length) ? interrupt(band, curves, (i) => counts[i] === 0 && inGap[i] === 1) : band;
}

/** Remove the positions where nothing was recorded, and add gaps where all curves have one. */
function interrupt(band: Band, curves: Curve[], empty: (i: number) => boolean): Band {
  const indices = [...band.x.keys()].filter((i) => !empty(i));
  const part = (column: Float64Array) => Float64Array.from(indices, (i) => column[i] as number);
  const x = part(band.x);
  const gaps = x.filter((from, i) => {
    const to = x[i + 1];
    if (to === undefined) return false;
    const covering = curves.filter((curve) => (curve.x[0] as number) <= from && (curve.x[curve.x.length - 1] as number) >= to);
    return covering.length > 0 && covering.every((curve) => interrupted(curve, from, to));
  });
  return { x, low: part(band.low), middle: part(band.middle), high: part(band.high), gaps };
}

function sharedPositions(curves: Curve[]): Float64Array | null {
  const first = curves[0]?.x;
  if (!first || first.length > 4000) return null;
  for (const { x } of curves) {
    if (x.length !== first.length) return null;
    for (let i = 0; i < x.length; i++) if (x[i] !== first[i]) return null;
  }
  return first;
}

/** Whether a gap lies between two positions. */
function interrupted({ gaps }: Pick<Curve, "gaps">, from: number, to: number): boolean {
  if (!gaps?.length) return false;
  const next = lowerBound(gaps, from);
  return next < gaps.length && (gaps[next] as number) < to;
}

/** Whether point `i` is not connected to the point before it. */
export function isInterrupted(curve: Pick<Curve, "x" | "gaps">, i: number): boolean {
  return i > 0 && interrupted(curve, curve.x[i - 1] as number, curve.x[i] as number);
}

function between({ x, y }: Curve, j: number, at: number): number {
  const left = y[j] as number;
  if (x[j] === at || j + 1 >= x.length) return left;
  const share = (at - (x[j] as number)) / ((x[j + 1] as number) - (x[j] as number));
  return left + ((y[j + 1] as number) - left) * share;
}

/** Index of the point nearest to `at`; -1 if there is none. */
export function nearest(x: Float64Array, at: number): number {
  if (x.length === 0) return -1;
  const right = lowerBound(x, at);
  if (right === 0) return 0;
  if (right === x.length) return x.length - 1;
  return at - (x[right - 1] as number) <= (x[right] as number) - at ? right - 1 : right;
}

/** Index of the first point at or after `at`. */
export function lowerBound(x: Float64Array, at: number): number {
  let low = 0;
  let high = x.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((x[middle] as number) < at) low = middle + 1;
    else high = middle;
  }
  return low;
}

export interface Range {
  min: number;
  max: number;
}

/** Range of the finite values at positions [from, to]; on a logarithmic axis, of the positive ones. */
export function extent(curves: Curve[], from: number, to: number, positive: boolean): Range | null {
  let min = Number.POSITIVE_INFINITY;
  let max = Number.NEGATIVE_INFINITY;
  for (const { x, y } of curves) {
    for (let i = lowerBound(x, from); i < x.length && (x[i] as number) <= to; i++) {
      const value = y[i] as number;
      if (!Number.isFinite(value) || (positive && value <= 0)) continue;
      if (value < min) min = value;
      if (value > max) max = value;
    }
  }
  return min <= max ? { min, max } : null;
}

/** Range of the values without the most extreme hundredth on each side. */
export function central(curves: Curve[], from: number, to: number, positive: boolean): Range | null {
  const values: number[] = [];
  for (const { x, y } of curves) {
    for (let i = lowerBound(x, from); i < x.length && (x[i] as number) <= to; i++) {
      const value = y[i] as number;
      if (Number.isFinite(value) && (!positive || value > 0)) values.push(value);
    }
  }
  if (values.length === 0) return null;
  const sorted = Float64Array.from(values).sort();
  const at = (share: number) => sorted[Math.round((sorted.length - 1) * share)] as number;
  return { min: at(0.01), max: at(0.99) };
}

/** Add a margin to a range, also to one of a single value. */
export function padded({ min, max }: Range, log: boolean): [number, number] {
  if (log) {
    const room = max > min ? (max / min) ** 0.05 : 2;
    return [min / room, max * room];
  }
  const room = max > min ? (max - min) * 0.06 : Math.abs(max) * 0.1 || 1;
  return [min - room, max + room];
}

export function join(left: Curve, right: Curve): Curve {
  const gaps = left.gaps && right.gaps ? Float64Array.from([...left.gaps, ...right.gaps]).sort() : (left.gaps ?? right.gaps);
  if (right.x.length === 0) return gaps === left.gaps ? left : { ...left, gaps };
  const n = left.x.length + right.x.length;
  const x = new Float64Array(n);
  const y = new Float64Array(n);
  x.set(left.x);
  x.set(right.x, left.x.length);
  y.set(left.y);
  y.set(right.y, left.y.length);
  const ordered = left.x.length === 0 || (right.x[0] as number) >= (left.x[left.x.length - 1] as number);
  return { ...(ordered ? { x, y } : sorted(x, y)), gaps };
}

/** Reduce a curve to a few points for each of `parts` equal parts of its range: first, last, lowest, highest, and a NaN. */
export function thin({ x, y, gaps }: Curve, parts: number): Curve {
  const start = x[0] ?? 0;
  const width = ((x[x.length - 1] ?? 0) - start) / parts || 1;
  const indices: number[] = [];
  let from = 0;
  for (let part = 0; from < x.length; part++) {
    const to = part + 1 >= parts ? x.length : lowerBound(x, start + width * (part + 1));
    if (to > from) indices.push(...representatives(y, from, to));
    from = Math.max(from, to);
  }
  return { x: Float64Array.from(indices, (i) => x[i] as number), y: Float64Array.from(indices, (i) => y[i] as number), gaps };
}

/** Indices of the points that represent the points from `from` to `to`, in order. */
function representatives(y: Float64Array, from: number, to: number): number[] {
  let [low, high, bad] = [-1, -1, -1];
  for (let i = from; i < to; i++) {
    const value = y[i] as number;
    if (Number.isNaN(value)) bad = i;
    else {
      if (low < 0 || value < (y[low] as number)) low = i;
      if (high < 0 || value > (y[high] as number)) high = i;
    }
  }
  return [...new Set([from, low, high, bad, to - 1])].filter((i) => i >= 0).sort((a, b) => a - b);
}

/** Sort by position: rows may arrive late and belong to earlier steps. */
function sorted(x: Float64Array, y: Float64Array): Curve {
  const order = Uint32Array.from(x, (_, i) => i).sort((a, b) => (x[a] as number) - (x[b] as number) || a - b);
  return { x: Float64Array.from(order, (i) => x[i] as number), y: Float64Array.from(order, (i) => y[i] as number) };
}
