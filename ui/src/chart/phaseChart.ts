// Charts of the phases of a step: stacked durations by host or device clock, and how far the device lags behind the host.

import * as format from "../base/format";
import { lineColor } from "../base/theme";
import type { Line } from "../data/api";
import type { ChartSource } from "./chartCard";
import { type ChartOptions, xKind } from "./chartOptions";
import { type Curve, aggregate } from "./curve";
import type { Trace, ChartView } from "./plot";
import type { PointCache } from "./pointCache";

/** Matches metrics with a name part `phase`. */
export const PHASE = /(?:^|[./])phase(?:[./]|$)/;
export const CLOCK = "tensormeter.clock";
const LAG = "lag";

/** Usual order of the phases within a step. */
const ORDER = ["data", "data_loading", "forward", "model_forward", "backward", "model_backward", "optimizer", "optimizer_update", "checkpoint", "checkpoint_save"];

export interface PhaseChoice {
  clock: string;
  /** Id of the process to show; null shows the mean of all. */
  process: string | null;
  /** Name of a process, for example "rank 3 on node1". */
  processName: (process: string) => string;
}

/** The metrics of the phases, and how to show them. */
export interface Phases {
  cache: PointCache;
  metrics: string[];
  unit: string;
  options: () => ChartOptions;
  choice: () => PhaseChoice;
}

/** Chart of stacked phases. The top line is the duration of the whole step. */
export function stackedPhases(phases: Phases): ChartSource {
  const source: ChartSource = {
    title: "phases, stacked",
    unit: phases.unit,
    description: "Duration of each phase of a step, stacked",
    subscribe: subscribeAll(phases),
    warns: false,
    read: async () => {
      const { clock, process, processName } = phases.choice();
      const lines = await load(phases, clock, process);
      const processes = new Set(lines.map((line) => line.process));
      const [only = ""] = processes;
      const words = processes.size > 1 ? `mean of ${processes.size} processes` : processes.size && process !== null ? processName(only) : "";
      source.remark = words && lines.some((line) => CLOCK in line.attributes) ? `${words}, ${clock} time` : words;
      return view(stack(byPhase(lines)), phases);
    },
  };
  return source;
}

/** Chart of the delay between host and device, for each phase and process. */
export function phaseLag(phases: Phases): ChartSource {
  return {
    title: "lag of the device",
    unit: phases.unit,
    description: "Delay between the launch of a phase on the host and its start on the device. Near zero, the device waits for the host.",
    subscribe: subscribeAll(phases),
    read: async () => {
      const { process, processName } = phases.choice();
      const lines = await load(phases, LAG, process);
      lines.sort((a, b) => compareOrder(phaseOf(a), phaseOf(b)));
      const several = new Set(lines.map((line) => line.process)).size > 1;
      const traces = lines.map((line, index): Trace => {
        const label = several ? `${phaseOf(line)} · ${processName(line.process)}` : phaseOf(line);
        return { x: line.x, y: line.y, gaps: line.gaps, label, color: lineColor(index), thin: lines.length > 12 };
      });
      return view(traces, phases);
    },
  };
}

function view(traces: Trace[], { unit, options }: Phases): ChartView {
  const { x, window, clip } = options();
  return { traces, x, xKind: xKind(x), xLabel: x, xLog: false, yLog: false, unit, window, clip };
}

/** Load the lines of a clock and a process; null loads those of all processes. */
async function load({ cache, metrics }: Phases, clock: string, process: string | null): Promise<Line[]> {
  const lines = await Promise.all(metrics.map((metric) => cache.load(metric)));
  return lines.flat().filter((line) => clockOf(line) === clock && (process === null || line.process === process));
}

function subscribeAll({ cache, metrics }: Phases): (listener: () => void) => () => void {
  return (listener) => {
    const offs = metrics.map((metric) => cache.subscribe(metric, listener));
    return () => {
      for (const off of offs) off();
    };
  };
}

function clockOf(line: Line): string {
  return String(line.attributes[CLOCK] ?? "host");
}

function phaseOf(line: Line): string {
  const entry = Object.entries(line.attributes).find(([key]) => /phase/.test(key) || key === "name");
  return entry ? String(entry[1]) : (line.metric.split(PHASE).pop() ?? line.metric).replace(/^[./]/, "") || line.metric;
}

/** One curve per phase, in the order of a step: the mean over processes. */
function byPhase(lines: Line[]): [string, Curve][] {
  const phases = [...Map.groupBy(lines, phaseOf)].sort(([a], [b]) => compareOrder(a, b));
  return phases.map(([name, members]) => {
    if (members.length === 1) return [name, members[0] as Line];
    const { x, middle, gaps } = aggregate(members);
    return [name, { x, y: middle, gaps }];
  });
}

function stack(phases: [string, Curve][]): Trace[] {
  const traces: Trace[] = [];
  let below: Curve | null = null;
  for (const [index, [name, curve]] of phases.entries()) {
    const base: Curve | null = below;
    const { x, gaps } = curve;
    const low: Float64Array = Float64Array.from(x, (at) => (base ? valueAt(base, at) : 0));
    const high: Float64Array = Float64Array.from(curve.y, (value, i) => value + (low[i] as number));
    const note = (i: number) => `${format.withUnit(curve.y[i] as number, "s")} in this phase`;
    traces.push({ x, y: high, gaps, label: name, color: lineColor(index), stack: true, band: { x, low, middle: high, high, gaps }, note });
    below = { x, y: high };
  }
  return traces;
}

/** The value of the last point at or before `at`. */
function valueAt({ x, y }: Curve, at: number): number {
  let low = 0;
  let high = x.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if ((x[middle] as number) <= at) low = middle;
    else high = middle - 1;
  }
  return (y[low] as number) || 0;
}

function compareOrder(a: string, b: string): number {
  const position = (phase: string) => (ORDER.includes(phase) ? ORDER.indexOf(phase) : ORDER.length);
  return position(a) - position(b) || (a < b ? -1 : a > b ? 1 : 0);
}
