// How charts look: what of it is in the address, and what follows from it.

import * as route from "../base/route";
import type { ChartView } from "./plot";
import type { Chart } from "./variant";

export interface ChartOptions {
  x: string;
  /** Whether somebody has chosen x; else charts without steps go by time. */
  explicitAxis: boolean;
  window: [number, number] | null;
  xLog: boolean;
  yLog: boolean;
  smoothing: number;
  clip: boolean;
  /** Across processes: their median and range, each of them, or the first alone. */
  ranks: "range" | "each" | "first";
  /** Of one process only, where it has the metric. */
  process?: string | null;
  /** Runs that are not shown. */
  hidden: Set<string>;
}

/** Whether a metric is shown by statistics over its processes, which know no attributes. */
export function usesRankStatistics(metric: Chart, options: ChartOptions): boolean {
  const plain = metric.attributes.every((attributes) => Object.keys(attributes).length === 0);
  return metric.processes > 1 && metric.scopes.length < 2 && plain && options.ranks === "range" && !options.process && !options.x.startsWith("metric:");
}

/** The look of charts that the address asks for; `axis` is x where it does not say. */
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
  };
}

export function xKind(x: string): ChartView["xKind"] {
  return x === "time" ? "time" : x === "relative" ? "duration" : "number";
}
