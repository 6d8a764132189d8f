// Charts of metrics. Metrics of one name that differ in unit or kind are charts of their own.

import type { Line, Metric } from "../data/api";

export interface Chart extends Metric {
  /** The name, and what tells it from other charts of that name. */
  title: string;
}

/** What tells metrics apart. */
export function metricKey({ name, kind, temporality, monotonic, unit }: Metric): string {
  return JSON.stringify([name, kind, temporality, monotonic, unit]);
}

/** Whether a line belongs into a chart of the metric. */
export function belongs(line: Line, { kind, temporality, monotonic, unit }: Metric): boolean {
  return line.kind === kind && line.unit === unit && line.temporality === temporality && line.monotonic === monotonic;
}

/** The same metrics with their titles. */
export function withTitles(metrics: Metric[]): Chart[] {
  const byName = new Map<string, Metric[]>();
  for (const metric of metrics) byName.set(metric.name, [...(byName.get(metric.name) ?? []), metric]);
  return metrics.map((metric) => Object.assign(metric, { title: title(metric, byName.get(metric.name) ?? []) }));
}

function title(metric: Metric, others: Metric[]): string {
  const differ = (part: (metric: Metric) => unknown) => new Set(others.map(part)).size > 1;
  const words = [
    differ(({ unit }) => unit) ? metric.unit || "no unit" : "",
    differ(({ kind }) => kind) ? metric.kind.replace("_", " ") : "",
    differ(({ temporality }) => temporality) ? (metric.temporality ?? "") : "",
    differ(({ monotonic }) => monotonic) && metric.monotonic !== null ? (metric.monotonic ? "monotonic" : "not monotonic") : "",
  ].filter(Boolean);
  return words.length ? `${metric.name} (${words.join(", ")})` : metric.name;
}
