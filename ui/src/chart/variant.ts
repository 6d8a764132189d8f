// Charts of metrics. Metrics of one name that differ in unit or kind are charts of their own; those of several scopes are one.

import type { Line, Metric } from "../api";

export interface Chart extends Metric {
  /** The name, and what tells it from other charts of that name. */
  title: string;
  scopes: string[];
}

/** What lines of one chart have in common. */
function key({ name, kind, temporality, unit }: Metric): string {
  return JSON.stringify([name, kind, temporality, unit]);
}

/** Whether a line belongs into a chart of the metric. */
export function belongs(line: Line, { kind, temporality, unit }: Metric): boolean {
  return line.kind === kind && line.unit === unit && (line.temporality ?? null) === (temporality ?? null);
}

/** The charts of some metrics. Those that are known stay the same objects. */
export class Charts {
  private readonly known = new Map<string, Chart>();

  of(metrics: Metric[]): Chart[] {
    const groups = new Map<string, Metric[]>();
    for (const metric of metrics) groups.set(key(metric), [...(groups.get(key(metric)) ?? []), metric]);
    const named = new Map<string, Chart[]>();
    for (const [name, group] of groups) {
      const chart = Object.assign(this.known.get(name) ?? {}, joined(group)) as Chart;
      this.known.set(name, chart);
      named.set(chart.name, [...(named.get(chart.name) ?? []), chart]);
    }
    for (const charts of named.values()) for (const chart of charts) chart.title = title(chart, charts);
    return [...groups.keys()].map((name) => this.known.get(name) as Chart);
  }
}

function joined(group: Metric[]): Omit<Chart, "title"> {
  const newest = [...group].sort((a, b) => Number(b.last_time ?? 0) - Number(a.last_time ?? 0))[0] as Metric;
  const attributes = new Map(group.flatMap((metric) => metric.attributes).map((one) => [JSON.stringify(one), one]));
  return {
    ...newest,
    attributes: [...attributes.values()],
    points: group.reduce((sum, { points }) => sum + points, 0),
    processes: Math.max(...group.map(({ processes }) => processes)),
    stepped: group.some(({ stepped }) => stepped),
    scopes: [...new Set(group.map(({ scope }) => scope))],
  };
}

function title(chart: Chart, charts: Chart[]): string {
  const differ = (part: (one: Chart) => unknown) => new Set(charts.map(part)).size > 1;
  const words = [
    differ(({ unit }) => unit) ? chart.unit || "no unit" : "",
    differ(({ kind }) => kind) ? chart.kind : "",
    differ(({ temporality }) => temporality) ? (chart.temporality ?? "") : "",
  ].filter(Boolean);
  return words.length ? `${chart.name} (${words.join(", ")})` : chart.name;
}
