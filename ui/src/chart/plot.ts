// One plot. uPlot draws axes, grid, cursor and selection; curves are drawn here, because each has its own positions.

import uPlot from "uplot";
import * as format from "../base/format";
import { color } from "../base/theme";
import { type ChartMark, NEAR, drawMarks } from "./chartMarks";
import { type Band, type Curve, type Range, central, extent, nearest, padded } from "./curve";
import * as paint from "./paint";

export interface Trace extends Curve {
  label: string;
  color: string;
  /** The curve before smoothing. */
  raw?: Curve;
  band?: Band;
  /** Additional text for the value at an index, for example its rank. */
  note?: (index: number) => string;
  thin?: boolean;
  dashed?: boolean;
  stack?: boolean;
  /** Whether the server left points out, so that counts of points are not exact. */
  sampled?: boolean;
}

export interface ChartView {
  traces: Trace[];
  /** Unit of x: `duration` is in seconds, `time` in seconds since the epoch. */
  xKind: "number" | "duration" | "time";
  /** Name of the axis in the address. */
  x: string;
  xLabel: string;
  xLog: boolean;
  yLog: boolean;
  unit: string;
  /** Range to zoom to; null shows everything. */
  window: [number, number] | null;
  /** Whether to exclude the most extreme values from the y range. */
  clip: boolean;
  /** Text to show if there is nothing to draw, and an axis on which there is. */
  hint?: { text: string; x?: string };
  /** Whether lines stand for groups, which the list of runs does not name. */
  grouped?: boolean;
  /** Moments to mark, such as checkpoints. */
  marks?: ChartMark[];
}

export interface Reading {
  label: string;
  color: string;
  y: number;
  x: number;
  note: string;
  low?: number;
  high?: number;
  /** Whether its curve is the nearest to the pointer. */
  nearest?: boolean;
}

export interface PlotEvents {
  zoom: (window: [number, number] | null) => void;
  hover: (at: number | null, readings: Reading[], place: { left: number; top: number }, marks: ChartMark[]) => void;
}

/** Half the size of a mark, and the width of its lines. */
export const MARK = 4;
export const MARK_LINE = 1.8;
/** Distance that a key moves the cursor, as a share of the plot's width, without and with Shift. */
const KEY_STEP = 0.01;
const KEY_LEAP = 0.1;
const MINUTE = 60;
const HOUR = 3600;
/** Intervals between ticks in seconds that are easy to read as durations. */
const DURATIONS = [
  ...[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30],
  ...[1, 2, 5, 10, 15, 30].map((minutes) => minutes * MINUTE),
  ...[1, 2, 3, 6, 12, 24, 48, 96, 168, 336, 672, 1344, 2688].map((hours) => hours * HOUR),
];

/** Intervals between ticks of steps, which are integers. */
const STEPS = Array.from({ length: 16 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** power)).flat();

/** Synchronizes the cursors of all plots with the same axis. */
const cursors = (x: string) => uPlot.sync(`tensormeter ${x}`);

export class Plot {
  /** Number of values in the visible range that are not finite, and that lie outside the y range. */
  marked = 0;
  outside = 0;
  private plot: uPlot | null = null;
  private shape = "";
  private cursors: uPlot.SyncPubSub | null = null;
  /** Whether keys move the cursor. */
  private keyboardActive = false;
  /** Whether the values at the cursor come from this plot. */
  private ownsReadings = false;
  private x: Range = { min: 0, max: 1 };
  private y: [number, number] = [0, 1];

  constructor(
    private readonly parent: HTMLElement,
    private readonly name: string,
    private view: ChartView,
    private readonly events: PlotEvents,
  ) {}

  update(view: ChartView, width: number, height: number): void {
    this.view = view;
    this.measure();
    const shape = [view.x, view.xLog, view.yLog, view.unit, view.xLabel].join();
    const data: uPlot.AlignedData = [
      [this.x.min, this.x.max],
      [null, null],
    ];
    if (this.plot && shape === this.shape) {
      if (this.plot.width !== width || this.plot.height !== height) this.plot.setSize({ width, height });
      this.plot.setData(data);
      this.updateAriaRange(this.plot);
      return;
    }
    this.destroy();
    this.shape = shape;
    this.plot = new uPlot(this.options(width, height), data, this.parent);
    this.cursors = cursors(view.x);
    this.cursors.sub(this.plot);
  }

  destroy(): void {
    if (!this.plot) return;
    this.cursors?.unsub(this.plot);
    this.plot.destroy();
    this.plot = null;
  }

  get canvas(): HTMLCanvasElement | null {
    return this.plot?.ctx.canvas ?? null;
  }

  get ranges(): { x: Range; y: Range; box: paint.Box } {
    const ratio = devicePixelRatio || 1;
    const box = this.plot?.bbox ?? { left: 0, top: 0, width: 1, height: 1 };
    return {
      x: this.x,
      y: { min: this.y[0], max: this.y[1] },
      box: { left: box.left / ratio, top: box.top / ratio, width: box.width / ratio, height: box.height / ratio },
    };
  }

  private measure(): void {
    const { traces, window, xLog, yLog, clip } = this.view;
    let min = Number.POSITIVE_INFINITY;
    let max = Number.NEGATIVE_INFINITY;
    for (const { x } of traces) {
      let first = 0;
      while (xLog && first < x.length && (x[first] as number) <= 0) first++;
      if (first >= x.length) continue;
      min = Math.min(min, x[first] as number);
      max = Math.max(max, x[x.length - 1] as number);
    }
    if (window) [min, max] = [xLog ? Math.max(window[0], Number.MIN_VALUE) : window[0], window[1]];
    if (!(min <= max)) [min, max] = xLog ? [1, 10] : [0, 1];
    if (min === max) [min, max] = xLog ? [min / 2, max * 2] : [min - 0.5, max + 0.5];
    this.x = { min, max };
    const curves = traces.flatMap((trace): Curve[] => [
      trace.raw ?? trace,
      ...(trace.band ? [{ x: trace.band.x, y: trace.band.low }, { x: trace.band.x, y: trace.band.high }] : []),
    ]);
    if (traces.some((trace) => trace.stack)) curves.push({ x: new Float64Array([min]), y: new Float64Array([0]) });
    const all = extent(curves, min, max, yLog);
    const range = clip ? central(curves, min, max, yLog) : all;
    this.y = range ? padded(range, yLog) : yLog ? [0.1, 10] : [0, 1];
    this.outside = 0;
    if (clip && range && all) {
      for (const { x, y } of curves) {
        for (let i = 0; i < y.length; i++) {
          const at = x[i] as number;
          const value = y[i] as number;
          if (at >= min && at <= max && (value < this.y[0] || value > this.y[1])) this.outside++;
        }
      }
    }
  }

  private options(width: number, height: number): uPlot.Options {
    const { x, xKind, xLabel, xLog, yLog, unit } = this.view;
    const incrs = xKind === "duration" ? DURATIONS : xLabel === "step" ? STEPS : null;
    const axis = {
      stroke: () => color("muted"),
      font: "11px system-ui, sans-serif",
      grid: { stroke: () => color("grid"), width: 1 },
      ticks: { show: false },
    };
    const values = (_: uPlot, splits: number[]) => {
      const labels = yLog ? legible(splits) : splits;
      return labels.map((split) => (split === null ? "" : axisLabel(split, unit)));
    };
    const formatX = xKind === "duration" ? (split: number) => (split === 0 ? "0" : split < 1 ? compact(split) : format.duration(split)) : compact;
    const xValues = (_: uPlot, splits: number[]) => (xLog ? legible(splits) : splits).map((split) => (split === null ? "" : formatX(split)));
    return {
      width,
      height,
      padding: [10, 10, 0, 0],
      legend: { show: false },
      cursor: {
        y: false,
        points: { show: false },
        drag: { x: true, y: false, setScale: false, dist: 4 },
        sync: { key: cursors(x).key, scales: ["x", null] },
      },
      select: { show: true, left: 0, top: 0, width: 0, height: 0 },
      scales: {
        x: { time: xKind === "time", distr: xLog ? 3 : 1, range: () => [this.x.min, this.x.max] },
        y: { distr: yLog ? 3 : 1, range: () => this.y },
      },
      series: [{}, { scale: "y", paths: () => null, points: { show: false } }],
      axes: [
        xKind === "time" ? { ...axis, size: 34 } : { ...axis, size: 26, values: xValues, ...(incrs && !xLog ? { incrs } : {}) },
        { ...axis, size: (_, labels) => 14 + 6.6 * Math.max(3, ...(labels ?? []).map((label) => label.length)), values },
      ],
      hooks: {
        draw: [(plot) => this.draw(plot)],
        setCursor: [(plot) => this.hover(plot)],
        setSelect: [
          (plot) => {
            if (plot.select.width < 4) return;
            const from = plot.posToVal(plot.select.left, "x");
            const to = plot.posToVal(plot.select.left + plot.select.width, "x");
            plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
            this.events.zoom([from, to]);
          },
        ],
        init: [
          (plot) => {
            plot.over.addEventListener("dblclick", () => this.events.zoom(null));
            this.addKeyboard(plot);
          },
        ],
      },
    };
  }

  private draw(plot: uPlot): void {
    const context = plot.ctx;
    const box = plot.bbox;
    const ratio = devicePixelRatio || 1;
    const { xLog, yLog, traces } = this.view;
    const sx = paint.scale(this.x.min, this.x.max, box.left, box.left + box.width, xLog);
    const sy = paint.scale(this.y[0], this.y[1], box.top + box.height, box.top, yLog);
    context.save();
    context.beginPath();
    context.rect(box.left, box.top, box.width, box.height);
    context.clip();
    this.marked = 0;
    const many = traces.length > 12;
    for (const trace of traces) {
      if (trace.band) paint.band(context, trace.band, sx, sy, trace.color, many ? 0.08 : 0.18);
      const raw = trace.raw;
      if (raw) paint.line(context, raw, sx, sy, { color: trace.color, width: ratio, alpha: many ? 0.12 : 0.36 });
      else if (!trace.band && !many) paint.envelope(context, trace, sx, sy, trace.color);
    }
    for (const trace of traces) {
      const width = (trace.thin || many ? 1 : 1.6) * ratio;
      paint.line(context, trace, sx, sy, { color: trace.color, width, alpha: trace.thin ? 0.5 : many ? 0.8 : 1, dashed: trace.dashed });
    }
    for (const trace of traces) {
      const marks = paint.marks(trace.raw ?? trace, sx, box, MARK * ratio);
      paint.drawMarks(context, marks, color("bad"), MARK_LINE * ratio);
      this.marked += marks.count;
    }
    context.restore();
    drawMarks(context, this.view.marks ?? [], sx, box, color("accent"), ratio);
  }

  /** Let the arrow keys move the cursor, so that values can be read without a pointer. Plus zooms in around the cursor. */
  private addKeyboard(plot: uPlot): void {
    const { over } = plot;
    const attributes = { tabindex: 0, role: "slider", "aria-label": `Values of ${this.name}, read with the arrow keys`, "aria-valuenow": this.x.min };
    for (const [name, value] of Object.entries(attributes)) over.setAttribute(name, String(value));
    this.updateAriaRange(plot);
    over.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const { clientWidth: width, clientHeight: height } = over;
      const from = this.keyboardActive ? (plot.cursor.left ?? 0) : -1;
      const step = width * (event.shiftKey ? KEY_LEAP : KEY_STEP);
      const middle = width / 2;
      const places: Record<string, number> = { ArrowLeft: from < 0 ? middle : from - step, ArrowRight: from < 0 ? middle : from + step, Home: 0, End: width };
      const place = places[event.key];
      if (place !== undefined) {
        this.keyboardActive = true;
        move(plot, Math.max(0, Math.min(width, place)), height / 2);
      } else if (event.key === "+" && from >= 0) {
        const at = plot.posToVal(from, "x");
        const half = (plot.posToVal(width, "x") - plot.posToVal(0, "x")) / 4;
        this.events.zoom([at - half, at + half]);
      } else if (event.key === "0") this.events.zoom(null);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    over.addEventListener("blur", () => {
      if (this.keyboardActive) move(plot, -10, -10);
      this.keyboardActive = false;
    });
  }

  /** Report the range of the cursor to assistive technology. */
  private updateAriaRange({ over }: uPlot): void {
    over.setAttribute("aria-valuemin", String(this.x.min));
    over.setAttribute("aria-valuemax", String(this.x.max));
  }

  private hover(plot: uPlot): void {
    const { left, top } = plot.cursor;
    if (left === undefined || top === undefined || left < 0) {
      // A new plot has no cursor either; the current values then belong to another plot.
      if (this.ownsReadings) this.events.hover(null, [], { left: 0, top: 0 }, []);
      this.ownsReadings = false;
      return;
    }
    // Cursors of other plots move along, but only the plot under the pointer or with the keyboard focus reports values.
    if (this.keyboardActive || (plot.cursor as { event?: unknown }).event) {
      const at = plot.posToVal(left, "x");
      const readings = this.readings(at);
      if (!this.keyboardActive) mark(readings, (value) => Math.abs(plot.valToPos(value, "y") - top));
      plot.over.setAttribute("aria-valuenow", String(at));
      plot.over.setAttribute("aria-valuetext", readings.map(({ label, y }) => `${label} ${format.withUnit(y, this.view.unit)}`).join(", "));
      const place = plot.over.getBoundingClientRect();
      this.ownsReadings = true;
      const marks = (this.view.marks ?? []).filter(({ x }) => Math.abs(plot.valToPos(x, "x") - left) <= NEAR);
      this.events.hover(at, readings, { left: place.left + left, top: place.top + top }, marks);
    }
  }

  readings(at: number): Reading[] {
    const readings: Reading[] = [];
    for (const trace of this.view.traces) {
      const index = nearest(trace.x, at);
      if (index < 0) continue;
      const raw = trace.raw?.y[index];
      const reading: Reading = {
        label: trace.label,
        color: trace.color,
        x: trace.x[index] as number,
        y: trace.y[index] as number,
        note: [raw === undefined ? "" : `raw ${format.number(raw)}`, trace.note?.(index) ?? ""].filter(Boolean).join(" · "),
      };
      if (trace.band) {
        const bandIndex = nearest(trace.band.x, at);
        reading.low = trace.band.low[bandIndex] as number;
        reading.high = trace.band.high[bandIndex] as number;
      }
      readings.push(reading);
    }
    return readings;
  }
}

/** Move the cursor, and those of synchronized plots. */
function move(plot: uPlot, left: number, top: number): void {
  // uPlot's type declaration lacks the argument that moves the other plots.
  (plot.setCursor as (place: { left: number; top: number }, tell: boolean, others: boolean) => void)({ left, top }, true, true);
}

/** Mark the reading with the smallest distance. */
function mark(readings: Reading[], distance: (value: number) => number): void {
  let best: Reading | null = null;
  let smallest = Number.POSITIVE_INFINITY;
  for (const reading of readings) {
    const length = distance(reading.y);
    if (length < smallest) [best, smallest] = [reading, length];
  }
  if (best && readings.length > 1) best.nearest = true;
}

/** Keep only the labels with one significant digit on a logarithmic axis, if there are any. */
function legible(splits: (number | null)[]): (number | null)[] {
  const round = splits.map((split) => (split !== null && Math.abs(split / Number(split.toPrecision(1)) - 1) < 1e-9 ? split : null));
  return round.some((split) => split !== null) ? round : splits;
}

function axisLabel(split: number, unit: string): string {
  if (unit === "By" || unit === format.SHARE || (unit === "s" && Math.abs(split) < 1 && split !== 0)) return format.withUnit(split, unit);
  return compact(split);
}

function compact(split: number): string {
  const size = Math.abs(split);
  if (size >= 10000) return size >= 1e15 ? split.toExponential(0).replace("e+", "e") : format.count(Number(split.toPrecision(6)));
  if (size !== 0 && size < 1e-3) return split.toExponential(Math.abs(split).toPrecision(3).includes(".") ? 1 : 0).replace(".0e", "e");
  return String(Number(split.toPrecision(6)));
}
