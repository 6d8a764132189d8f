// Which metrics are charts, in which order, and under which headings.

import type { Metric } from "../data/api";
import { SYSTEM_METRIC } from "../data/fields";

const DISTRIBUTION = new Set(["histogram", "exponential_histogram", "summary"]);

/** What the script logged; what the machine did is on the system pane. */
function isTrainingMetric({ name, kind }: Metric): boolean {
  return !SYSTEM_METRIC.test(name) && !DISTRIBUTION.has(kind);
}

export function isSystemMetric({ name, kind }: Metric): boolean {
  return SYSTEM_METRIC.test(name) && !DISTRIBUTION.has(kind) && name !== "tensormeter.step";
}

/** The charts that a search leaves over, by name. */
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
  /** Its charts take all the width there is. */
  spread?: boolean;
}

/** Names as paths: what stands before the first slash is the section. */
export function groupIntoSections<Charted extends Metric, Source extends Titled>(metrics: Charted[], toSource: (metric: Charted) => Source): Section<Source>[] {
  const bySection = new Map<string, Source[]>();
  for (const metric of metrics) {
    const cut = metric.name.indexOf("/");
    const section = cut > 0 ? metric.name.slice(0, cut) : "";
    const sources = bySection.get(section) ?? [];
    sources.push(toSource(metric));
    bySection.set(section, sources);
  }
  // A section for a single chart is mostly empty space.
  const singles = [...bySection].filter(([name, sources]) => name && sources.length === 1);
  if (singles.length > 1) {
    for (const [name] of singles) bySection.delete(name);
    const rest = [...(bySection.get("") ?? []), ...singles.flatMap(([, sources]) => sources)];
    bySection.set("", rest.sort((a, b) => (a.title < b.title ? -1 : 1)));
  }
  return [...bySection].map(([name, sources]) => ({ name, sources })).sort((a, b) => sectionRank(a.name) - sectionRank(b.name) || (a.name < b.name ? -1 : 1));
}

/** What people look at first stands first. */
function sectionRank(name: string): number {
  const position = ["eval", "val", "validation", "train", ""].indexOf(name);
  return position < 0 ? 9 : position;
}

/** A regular expression, or the text itself where it is none. */
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
