// Charts of metrics. Metrics with the same name but another unit or kind get separate charts.

import type { Line } from "../data/api";
import type { Metric } from "../data/metrics";

export interface Chart extends Metric {
  /** The name, and the properties that distinguish it from other charts with that name. */
  title: string;
}

/** Key of a metric, from all properties that distinguish metrics. */
export function metricKey({ name, kind, temporality, monotonic, unit }: Metric): string {
  return JSON.stringify([name, kind, temporality, monotonic, unit]);
}

/** Whether a line belongs to the chart of a metric. */
export function belongs(line: Line, { kind, temporality, monotonic, unit }: Metric): boolean {
  return line.kind === kind && line.unit === unit && line.temporality === temporality && line.monotonic === monotonic;
}

/** Set the titles of charts that share a name. */
export function setTitles(charts: Chart[]): void {
  for (const chart of charts) chart.title = title(chart, charts);
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
