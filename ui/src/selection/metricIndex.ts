// The metrics of a selection of runs that have been read so far, by name.

import { type Chart, metricKey, setTitles } from "../chart/variant";
import type { Metric } from "../data/metrics";

export class MetricIndex {
  /** Highest step of any metric; -1 if none has steps. */
  lastStep = -1;
  /** Whether any metric has steps. */
  hasSteps = false;
  private readonly byName = new Map<string, Chart[]>();

  /** `several` tells whether the metrics belong to several runs; readings of different runs are then combined. */
  constructor(private readonly several: boolean) {}

  /** Number of names. */
  get size(): number {
    return this.byName.size;
  }

  *[Symbol.iterator](): Iterator<Chart> {
    for (const charts of this.byName.values()) yield* charts;
  }

  named(name: string): Chart[] {
    return this.byName.get(name) ?? [];
  }

  /** The chart with this title; else one whose metric has this name. */
  titled(title: string): Chart | undefined {
    const [exact] = this.named(title);
    if (exact) return this.named(title).find((chart) => chart.title === title) ?? exact;
    return this.named(nameIn(title)).find((chart) => chart.title === title);
  }

  /** Add metrics, or update known ones in place. Returns their charts. */
  add(metrics: Metric[]): Chart[] {
    return metrics.map((metric) => {
      if ((metric.last_step ?? -1) > this.lastStep) this.lastStep = metric.last_step as number;
      this.hasSteps ||= metric.stepped;
      const charts = this.named(metric.name);
      const key = metricKey(metric);
      const known = charts.find((chart) => metricKey(chart) === key);
      if (known) {
        Object.assign(known, this.several ? combined(known, metric) : metric);
        return known;
      }
      const chart: Chart = { ...metric, title: metric.name };
      charts.push(chart);
      this.byName.set(metric.name, charts);
      if (charts.length > 1) setTitles(charts);
      return chart;
    });
  }

  /** Upper bound of the number of lines in one run: each process may have each set of attributes. */
  linesPerRun(name: string): number {
    return this.named(name).reduce((sum, { processes, attributes }) => sum + processes * Math.max(1, attributes.length), 0) || 1;
  }

  /** Whether a metric has points, but none with a step. */
  isStepless(name: string): boolean {
    const matches = this.named(name).filter(({ points }) => points > 0);
    return matches.length > 0 && matches.every(({ stepped }) => !stepped);
  }
}

/** The name in the title of a chart that shares its name with others. */
export function nameIn(title: string): string {
  return title.slice(0, Math.max(0, title.lastIndexOf(" (")));
}

function combined(known: Chart, metric: Metric): Partial<Chart> {
  const { points, last_step, last_time } = metric;
  return {
    ...(Number(last_time ?? 0) > Number(known.last_time ?? 0) ? { last_step, last_time } : {}),
    processes: Math.max(metric.processes, known.processes),
    attributes: union(known.attributes, metric.attributes),
    scopes: union(known.scopes, metric.scopes),
    points: Math.max(points, known.points),
    stepped: known.stepped || metric.stepped,
  };
}

function union<T>(left: T[], right: T[]): T[] {
  return [...new Map([...left, ...right].map((item) => [JSON.stringify(item), item])).values()];
}
