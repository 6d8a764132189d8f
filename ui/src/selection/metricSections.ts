// Selects the metrics that become charts, and groups them into sections.

import type { Metric } from "../data/api";
import { SYSTEM_METRIC } from "../data/fields";

const DISTRIBUTION = new Set(["histogram", "exponential_histogram", "summary"]);

/** Whether the training script logged the metric. System metrics are on the system pane. */
function isTrainingMetric({ name, kind }: Metric): boolean {
  return !SYSTEM_METRIC.test(name) && !DISTRIBUTION.has(kind);
}

export function isSystemMetric({ name, kind }: Metric): boolean {
  return SYSTEM_METRIC.test(name) && !DISTRIBUTION.has(kind) && name !== "tensormeter.step";
}

/** The training metrics that match a search, sorted by name. */
export function trainingCharts<Charted extends Metric>(metrics: Charted[], search: string): Charted[] {
  const matches = matcher(search);
  return metrics.filter((metric) => isTrainingMetric(metric) && matches(metric.name)).sort((a, b) => (a.name < b.name ? -1 : 1));
}

interface Titled {
  title: string;
}

export interface Section<Source extends Titled> {
  name: string;
  sources: Source[];
  /** Whether its charts take the full width. */
  spread?: boolean;
}

/** Group metrics by the part of their names before the first slash. */
export function groupIntoSections<Charted extends Metric, Source extends Titled>(metrics: Charted[], toSource: (metric: Charted) => Source): Section<Source>[] {
  const bySection = new Map<string, Source[]>();
  for (const metric of metrics) {
    const cut = metric.name.indexOf("/");
    const section = cut > 0 ? metric.name.slice(0, cut) : "";
    const sources = bySection.get(section) ?? [];
    sources.push(toSource(metric));
    bySection.set(section, sources);
  }
  // Sections with a single chart would be mostly empty, so they are merged.
  const singles = [...bySection].filter(([name, sources]) => name && sources.length === 1);
  if (singles.length > 1) {
    for (const [name] of singles) bySection.delete(name);
    const rest = [...(bySection.get("") ?? []), ...singles.flatMap(([, sources]) => sources)];
    bySection.set("", rest.sort((a, b) => (a.title < b.title ? -1 : 1)));
  }
  return [...bySection].map(([name, sources]) => ({ name, sources })).sort((a, b) => sectionRank(a.name) - sectionRank(b.name) || (a.name < b.name ? -1 : 1));
}

/** Position of a section: evaluation first, then training, then the others. */
function sectionRank(name: string): number {
  const position = ["eval", "val", "validation", "train", ""].indexOf(name);
  return position < 0 ? 9 : position;
}

/** Create a filter from a regular expression, or from the text itself if it is not a valid one. */
export function matcher(text: string): (name: string) => boolean {
  if (!text) return () => true;
  try {
    const expression = new RegExp(text, "i");
    return (name) => expression.test(name);
  } catch {
    const lower = text.toLowerCase();
    return (name) => name.toLowerCase().includes(lower);
  }
}
