// Display options of charts, read from the address.

import * as route from "../base/route";
import type { Run } from "../data/api";
import type { ChartView } from "./plot";
import type { AxisChoice } from "./pointCache";
import type { Chart } from "./variant";

export interface ChartOptions {
  x: string;
  /** Whether the user has chosen x. If not, charts without steps use time. */
  explicitAxis: boolean;
  window: [number, number] | null;
  xLog: boolean;
  yLog: boolean;
  smoothing: number;
  clip: boolean;
  /** How to show several processes: median and range, each one, or the first only. */
  ranks: "range" | "each" | "first";
  /** Id of the only process to show, if it has the metric. */
  process?: string | null;
  /** Ids of hidden runs. */
  hidden: Set<string>;
  /** Whether attempts are shown as separate lines, with the points that later attempts repeat. */
  allAttempts: boolean;
  /** Whether the curves of the runs' parents are shown. */
  parents: boolean;
}

/** Whether a metric is shown as statistics over its processes. Statistics ignore attributes. */
export function usesRankStatistics(metric: Chart, options: ChartOptions): boolean {
  const plain = metric.attributes.every((attributes) => Object.keys(attributes).length === 0);
  return metric.processes > 1 && metric.scopes.length < 2 && plain && options.ranks === "range" && !options.process && !options.allAttempts && !options.x.startsWith("metric:");
}

/** Read the options from the address. `axis` is the default of x. */
export function readChartOptions(params: URLSearchParams, axis: string): ChartOptions {
  const from = Number.parseFloat(params.get("from") ?? "");
  const to = Number.parseFloat(params.get("to") ?? "");
  const smoothing = Number(params.get("s") ?? 0);
  const ranks = params.get("ranks");
  return {
    x: params.get("x") || axis,
    explicitAxis: Boolean(params.get("x")),
    window: Number.isFinite(from) && Number.isFinite(to) && from < to ? [from, to] : null,
    xLog: params.has("xlog"),
    yLog: params.has("ylog"),
    smoothing: smoothing > 0 && smoothing < 1 ? smoothing : 0,
    clip: params.has("clip"),
    ranks: ranks === "each" || ranks === "first" ? ranks : "range",
    hidden: new Set(route.list(params, "hide")),
    allAttempts: params.get("attempts") === "all",
    parents: params.get("parents") !== "0",
  };
}

/** The lines that a cache of points reads with these options. */
export function axisChoice({ x, explicitAxis, window, allAttempts, parents }: ChartOptions, runs: Pick<Run, "parent">[]): AxisChoice {
  return { x, explicitAxis, window, allAttempts, parents: parents && runs.some(({ parent }) => parent !== null) };
}

export function xKind(x: string): ChartView["xKind"] {
  return x === "time" ? "time" : x === "relative" ? "duration" : "number";
}
