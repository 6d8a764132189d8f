// The charts of the selected runs as a tree of sections. A few metrics are read at once; of many, only those of open sections are read.

import * as route from "../base/route";
import type { Chart } from "../chart/variant";
import * as listing from "../data/metrics";
import type { MetricIndex } from "./metricIndex";
import { FIRST_SECTIONS, byName, compareSections, groupByPart, matcher } from "./metricSections";

/** Number of metrics up to which all are read at once, and all sections are open. */
export const FEW = 1000;
/** Number of metrics that are read before it is known whether there are few. */
const FIRST_PAGE = 200;
/** Number of metrics of several runs up to which all are kept. */
const MAX_LOCAL = 4 * FEW;
/** Number of charts up to which a section shows all of them, without sections of its own. */
const FLAT = 60;
const SECTIONS_PAGE = 200;
const CHARTS_PAGE = 100;
/** Average number of charts in a section below which sections would only be in the way. */
const MIN_AVERAGE = 2;
/** Number of open sections that are read again while the run grows. */
const MAX_REFRESHED = 12;
/** Number of levels of sections that are read at once until there are charts. Deeper ones are read when they come into sight. */
const FIRST_DEPTH = 4;
/** Heading of the metrics without a section. */
const NO_SECTION = "charts";

/** Read from the address which sections the user opened and closed. */
export function foldsIn(params: URLSearchParams): Folds {
  return { open: new Set(route.list(params, "open")), closed: new Set(route.list(params, "closed")) };
}

/** A section of charts. It is read when it is opened. */
export class MetricNode {
  charts: Chart[] = [];
  sections: MetricNode[] = [];
  state: "unread" | "reading" | "read" = "unread";
  problem: unknown = null;
  /** Names after which the next pages of charts and of sections begin; null if there are none. */
  nextCharts: string | null = null;
  nextSections: string | null = null;
  /** Whether it shows the charts of its sections in one list. */
  flat = false;

  /** Start of the names of its metrics. */
  readonly prefix: string;
  readonly depth: number;

  constructor(
    /** The section that contains it; null for the root. */
    public parent: MetricNode | null,
    /** Last part of the prefix, which may be empty; null for the root, and for the metrics without a section. */
    readonly name: string | null,
    /** Number of metrics in it and below it. */
    public count: number,
  ) {
    this.prefix = parent && name !== null ? `${parent.prefix}${name}/` : "";
    this.depth = parent ? parent.depth + 1 : 0;
  }

  /** Key in lists of open and closed sections: "a" for the prefix "a/", "a///" for "a//", and "/" for the metrics without a section. */
  get key(): string {
    return this.name ? this.prefix.slice(0, -1) : `${this.prefix}/`;
  }

  /** The heading. A section with the name "" or "charts" has a slash, unlike the metrics without a section. */
  get label(): string {
    return this.name === null ? NO_SECTION : this.name && this.name !== NO_SECTION ? this.name : `${this.name}/`;
  }

  get hasMore(): boolean {
    return this.nextCharts !== null || this.nextSections !== null;
  }
}

interface ChartPage {
  charts: Chart[];
  next: string | null;
  total: number;
}

/** Sections that the user opened and closed, by key. */
export interface Folds {
  open: Set<string>;
  closed: Set<string>;
}

export class MetricTree {
  root = new MetricNode(null, null, 0);
  /** Number of charts without a search, and of those that match the search. */
  total = 0;
  matches = 0;
  /** The search that the tree shows. */
  search = "";
  /** Whether all metrics are in the index. */
  isComplete = false;
  /** Changes when there is something new to show. */
  version = 0;
  private started = false;
  private abort = new AbortController();

  constructor(
    private readonly project: string,
    private runs: string[],
    private readonly index: MetricIndex,
  ) {}

  /** Whether all matching metrics have been read. All sections are then open unless the user closed them. */
  isLocal = true;

  isOpen(node: MetricNode, { open, closed }: Folds): boolean {
    if (closed.has(node.key)) return false;
    return open.has(node.key) || this.isLocal || this.isFirst(node);
  }

  /** Whether a section is open because it is the only one in its section, or because it leads to the first charts. */
  private isFirst(node: MetricNode): boolean {
    const { parent } = node;
    if (!parent || parent.sections.length === 1) return true;
    return parent.sections[0] === node && parent.charts.length === 0 && this.isFirst(parent);
  }

  /** Read the charts of these runs instead. */
  setRuns(runs: string[]): void {
    this.runs = runs;
  }

  /**
   * Read what the first view needs: all metrics if there are few; otherwise the top sections, and the first charts.
   * The tree does not change before they have arrived. An aborted call never returns a change.
   */
  async load(search: string): Promise<void> {
    if (this.isComplete) {
      this.showLocal([...this.index], search);
      return;
    }
    this.abort.abort();
    this.abort = new AbortController();
    const { signal } = this.abort;
    if (!this.started) {
      const page = await this.few("", signal);
      this.started = true;
      this.total = page.total;
      if (page.next === null) {
        this.isComplete = true;
        this.showLocal([...this.index], search);
        return;
      }
      if (!search) return this.showSections(page, search, signal);
    }
    await this.readMatching(search, signal);
  }

  /** Read what the view of a search needs. With `folds`, sections that are shown already are updated in place. */
  private async readMatching(search: string, signal: AbortSignal, folds?: Folds): Promise<void> {
    const page = await this.few(search, signal);
    if (!search) this.total = page.total;
    if (page.next === null) this.showLocal(page.charts, search);
    else if (folds && !this.isLocal) await this.refreshSections(page, folds, signal);
    else await this.showSections(page, search, signal);
  }

  /** Read a section, or its next page if it has been read. Calls `onChange` when there is something new to show. */
  async read(node: MetricNode, onChange: () => void): Promise<void> {
    if (node.state === "reading") return;
    const { signal } = this.abort;
    const before = node.state;
    node.state = "reading";
    node.problem = null;
    try {
      if (before === "unread") await this.readFirst(node, this.search, signal);
      else await this.readMore(node, this.search, signal);
      node.state = "read";
    } catch (error) {
      node.state = before;
      if (signal.aborted) return;
      node.problem = error;
    }
    this.version++;
    onChange();
  }

  /**
   * Read again what the tree shows, because runs have grown. Returns whether charts were added.
   *
   * `runs` are those that have grown, if all metrics have been read.
   */
  async refresh(folds: Folds, runs = this.runs): Promise<boolean> {
    const { signal } = this.abort;
    const before = this.matches;
    const { size } = this.index;
    if (this.isComplete) {
      const page = await this.few("", signal, runs);
      this.isComplete = page.next === null && this.index.size <= MAX_LOCAL;
      if (this.isComplete) {
        this.showLocal([...this.index], this.search);
        return this.index.size !== size;
      }
    }
    await this.readMatching(this.search, signal, folds);
    return this.matches !== before || this.index.size !== size;
  }

  /** Update the sections in place, so that those that are open keep their charts. */
  private async refreshSections(page: ChartPage, folds: Folds, signal: AbortSignal): Promise<void> {
    const { search } = this;
    const root = await this.readSections(page, search, signal);
    if (signal.aborted) return;
    this.merge(this.root, root);
    this.root.sections.sort(compareSections);
    for (const node of this.openNodes(folds).slice(0, MAX_REFRESHED)) {
      // Sections of which several pages were read are not read again.
      if (node.charts.length > CHARTS_PAGE || node.sections.length > SECTIONS_PAGE) continue;
      const fresh = new MetricNode(node.parent, node.name, node.count);
      await this.readFirst(fresh, search, signal);
      this.merge(node, fresh);
    }
    this.matches = page.total;
    this.version++;
  }

  /** Take over the counts, new sections, and the charts if they were read. */
  private merge(node: MetricNode, fresh: MetricNode): void {
    const known = new Map(node.sections.map((section) => [section.name, section]));
    for (const section of fresh.sections) {
      const existing = known.get(section.name);
      if (existing) existing.count = section.count;
      else node.sections.push(section);
      section.parent = node;
    }
    node.count = fresh.count;
    if (fresh.state !== "read") return;
    const { charts, nextCharts, nextSections, flat } = fresh;
    Object.assign(node, { charts, nextCharts, nextSections, flat });
  }

  /** The first charts of open sections, in the order in which they are shown. */
  firstCharts(n: number, folds: Folds): Chart[] {
    return this.openNodes(folds).flatMap(({ charts }) => charts).slice(0, n);
  }

  /** Make sure that the metric of a chart with this title is in the index. */
  async lookUp(title: string, names: string[]): Promise<void> {
    if (this.isComplete || this.index.titled(title)) return;
    await this.page({ search: listing.anyOf(names) }, this.abort.signal);
  }

  /** Read all metrics that match if they are few, otherwise a page of them. */
  private async few(search: string, signal: AbortSignal, runs = this.runs): Promise<ChartPage> {
    const first = await this.page({ search, limit: FIRST_PAGE }, signal, runs);
    if (first.next === null || first.total > FEW) return first;
    const { charts, next, total } = await this.page({ search, after: first.next, limit: FEW }, signal, runs);
    return { charts: [...first.charts, ...charts], next, total };
  }

  private async page(query: listing.MetricQuery, signal: AbortSignal, runs = this.runs): Promise<ChartPage> {
    const { metrics, next, total } = await listing.metrics(this.project, runs, { pane: "charts", ...query }, signal);
    return { charts: this.index.add(metrics), next, total };
  }

  /** Show sections of metrics that have all been read. */
  private showLocal(charts: Chart[], search: string): void {
    if (this.isComplete) this.total = new Set(charts.map(({ name }) => name)).size;
    const matches = matcher(search);
    const matching = (this.isComplete ? charts.filter(({ name }) => matches(name)) : charts).sort(byName);
    const root = new MetricNode(null, null, matching.length);
    const { direct, sections } = groupByPart(matching, "");
    root.sections = [...sections].map(([name, members]) => this.localNode(root, name, members));
    if (direct.length) root.sections.push(this.localNode(root, null, direct));
    this.isLocal = true;
    this.show(root, search, new Set(matching.map(({ name }) => name)).size);
  }

  private localNode(parent: MetricNode, name: string | null, charts: Chart[]): MetricNode {
    const node = new MetricNode(parent, name, charts.length);
    node.state = "read";
    node.charts = charts;
    if (name !== null && charts.length > FLAT) {
      const { direct, sections } = groupByPart(charts, node.prefix);
      node.charts = direct;
      node.sections = [...sections].map(([part, members]) => this.localNode(node, part, members));
    }
    return node;
  }

  /** Show top sections from the server. The first one is read, down to its first charts. */
  private async showSections(page: ChartPage, search: string, signal: AbortSignal): Promise<void> {
    const root = await this.readSections(page, search, signal);
    let opened = root.sections[0];
    for (let depth = 0; opened?.state === "unread" && depth < FIRST_DEPTH; depth++) {
      const { prefix, count } = opened;
      const charts = page.charts.filter(({ name }) => name.startsWith(prefix));
      if (prefix && count <= FLAT && charts.length >= count) Object.assign(opened, { charts, state: "read" });
      else await this.readFirst(opened, search, signal);
      if (opened.charts.length === 0) opened = opened.sections[0];
    }
    if (signal.aborted) return;
    this.isLocal = false;
    this.show(root, search, page.total);
  }

  /** Read the top sections. `page` is the first page of metrics, which are shown in one list if there are hardly any sections. */
  private async readSections(page: ChartPage, search: string, signal: AbortSignal): Promise<MetricNode> {
    const names = FIRST_SECTIONS.filter(Boolean);
    const [top, first] = await Promise.all([
      this.sectionPage({ search }, signal),
      search ? null : this.sectionPage({ search: `^(${names.join("|")})/` }, signal),
    ]);
    const root = new MetricNode(null, null, page.total);
    if (averageOf(top.sections) < MIN_AVERAGE) {
      const { charts, next } = page;
      root.sections = [Object.assign(new MetricNode(root, null, page.total), { flat: true, state: "read", charts, nextCharts: next })];
      return root;
    }
    const sections = new Map([...top.sections, ...(first?.sections ?? [])].map(({ name, metrics }) => [name, metrics]));
    root.sections = [...sections].map(([name, metrics]) => new MetricNode(root, name, metrics));
    if (top.metrics) root.sections.push(new MetricNode(root, null, top.metrics));
    root.sections.sort(compareSections);
    root.nextSections = top.next;
    return root;
  }

  private show(root: MetricNode, search: string, matches: number): void {
    root.sections.sort(compareSections);
    root.state = "read";
    this.root = root;
    this.search = search;
    this.matches = matches;
    this.version++;
  }

  /** Read the first page of a section: all charts if they are few, otherwise those directly in it, and its sections. */
  private async readFirst(node: MetricNode, search: string, signal: AbortSignal): Promise<void> {
    const { prefix } = node;
    const few = prefix !== "" && node.count <= FLAT;
    const below = few || !prefix ? null : await this.sectionPage({ prefix, search }, signal);
    // If its sections have hardly more than one chart each, their charts are shown in one list.
    const isFlat = few || (below !== null && averageOf(below.sections) < MIN_AVERAGE);
    const divided = isFlat ? null : below;
    if (!divided || divided.metrics) {
      const limit = few ? FEW : CHARTS_PAGE;
      const { charts, next } = await this.page({ prefix, search, limit, direct: !isFlat }, signal);
      Object.assign(node, { charts, nextCharts: next });
    }
    node.flat = isFlat;
    node.sections = (divided?.sections ?? []).map(({ name, metrics }) => new MetricNode(node, name, metrics));
    node.nextSections = divided?.next ?? null;
    node.state = "read";
  }

  private async readMore(node: MetricNode, search: string, signal: AbortSignal): Promise<void> {
    const { prefix, flat } = node;
    if (node.nextCharts !== null) {
      const { charts, next } = await this.page({ prefix, search, direct: !flat, after: node.nextCharts, limit: CHARTS_PAGE }, signal);
      node.charts = [...node.charts, ...charts];
      node.nextCharts = next;
    } else if (node.nextSections !== null) {
      const { sections, next } = await this.sectionPage({ prefix, search, after: node.nextSections }, signal);
      const known = new Set(node.sections.map(({ name }) => name));
      for (const { name, metrics } of sections) if (!known.has(name)) node.sections.push(new MetricNode(node, name, metrics));
      node.nextSections = next;
    }
  }

  private sectionPage(query: listing.MetricQuery, signal: AbortSignal): Promise<listing.SectionPage> {
    return listing.sections(this.project, this.runs, { pane: "charts", limit: SECTIONS_PAGE, ...query }, signal);
  }

  private openNodes(folds: Folds): MetricNode[] {
    const nodes: MetricNode[] = [];
    const visit = (node: MetricNode) => {
      for (const section of node.sections) {
        if (section.state === "unread" || !this.isOpen(section, folds)) continue;
        nodes.push(section);
        visit(section);
      }
    };
    visit(this.root);
    return nodes;
  }
}

function averageOf(sections: listing.SectionPage["sections"]): number {
  return sections.reduce((sum, { metrics }) => sum + metrics, 0) / Math.max(1, sections.length);
}
