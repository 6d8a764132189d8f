// Groups metrics into sections by the parts of their names, and searches names.

export interface Named {
  name: string;
}

export interface Grouped<Metric extends Named> {
  /** Metrics without a section of their own. */
  direct: Metric[];
  /** Sections by the next part of the name, in order of their names. */
  sections: Map<string, Metric[]>;
}

/** Group metrics, sorted by name, by the part of their names between the prefix and the next slash. */
export function groupByPart<Metric extends Named>(metrics: Metric[], prefix: string): Grouped<Metric> {
  const direct: Metric[] = [];
  const sections = new Map<string, Metric[]>();
  for (const metric of metrics) {
    const cut = metric.name.indexOf("/", prefix.length);
    if (cut < 0) {
      direct.push(metric);
      continue;
    }
    const part = metric.name.slice(prefix.length, cut);
    const section = sections.get(part);
    if (section) section.push(metric);
    else sections.set(part, [metric]);
  }
  // Sections with a single chart would be mostly empty, so they are merged.
  const singles = [...sections].filter(([, members]) => members.length === 1);
  if (singles.length > 1) {
    for (const [part, members] of singles) {
      sections.delete(part);
      direct.push(...members);
    }
    direct.sort(byName);
  }
  return { direct, sections };
}

export function byName(a: Named, b: Named): number {
  return a.name < b.name ? -1 : a.name > b.name ? 1 : 0;
}

/** Name of a section; null for the metrics without a section. */
type SectionName = string | null;

/** Top sections that are shown first, in this order. */
export const FIRST_SECTIONS: SectionName[] = ["eval", "val", "validation", "train", null];

/** Compare top sections: evaluation first, then training, then the others. */
export function compareSections({ name: a }: { name: SectionName }, { name: b }: { name: SectionName }): number {
  return sectionRank(a) - sectionRank(b) || ((a ?? "") < (b ?? "") ? -1 : 1);
}

function sectionRank(name: SectionName): number {
  const position = FIRST_SECTIONS.indexOf(name);
  return position < 0 ? FIRST_SECTIONS.length : position;
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
