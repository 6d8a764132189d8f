// Histograms over steps as heat maps, with a slider that selects one of them.

import { arrange, fill, h, setValue } from "../base/dom";
import * as format from "../base/format";
import { remember } from "../base/remember";
import { drawHeatmap, drawSingle, type Frame } from "../chart/heatmap";
import { type Chart, metricKey } from "../chart/variant";
import * as api from "../data/api";
import type { Update } from "../data/live";
import { metrics } from "../data/metrics";
import { MetricIndex } from "../selection/metricIndex";
import type { RunSelection } from "../selection/runSelection";
import { searchField } from "../widgets/searchField";
import type { Pane } from "./pane";

const KINDS = new Set(["histogram", "exponential_histogram"]);
/** Number of metrics that are read at once. */
const PAGE = 100;
/** Number of heat maps that one metric shows at most, one for each set of attributes. */
const MAX_SETS = 500;

export class DistributionsPane implements Pane {
  readonly element = h("div", { class: "pane" });
  private readonly cards = new Map<string, DistributionCard>();
  private readonly search = searchField("distributions");
  private readonly grid = h("div", { class: "charts wide" });
  private readonly observer = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (target === this.more) this.moreInSight = isIntersecting;
        else this.cards.get((target as HTMLElement).dataset.key ?? "")?.setVisible(isIntersecting);
      }
      if (this.moreInSight && this.next !== null) void this.read();
    },
    { rootMargin: "200px" },
  );
  private width = 0;
  private readonly resized = new ResizeObserver(() => {
    if (this.width === this.grid.clientWidth) return;
    this.width = this.grid.clientWidth;
    for (const card of this.cards.values()) card.draw();
  });
  private params = new URLSearchParams();
  private readonly more = h("div", { class: "more" });
  private moreInSight = false;
  private readonly metrics = new MetricIndex(false);
  /** Charts of the search, and the name after which its next page begins: null after the last, undefined before the first. */
  private charts: Chart[] = [];
  private next: string | null | undefined;
  private searched: string | undefined;
  private total = 0;
  private isReading = false;
  private hasNew = false;
  private isClosed = false;

  constructor(private readonly selection: RunSelection) {
    this.element.append(h("div", { class: "content" }, h("div", { class: "controls", role: "search" }, this.search), this.grid, this.more));
    this.resized.observe(this.grid);
    this.observer.observe(this.more);
  }

  apply(params: URLSearchParams): void {
    this.params = params;
    setValue(this.search, params.get("q") ?? "");
    if (this.searched === undefined || this.searched !== (params.get("q") ?? "")) void this.read();
    this.draw();
  }

  /** Read the next page of metrics; the first one after another search. Only the latest search waits for an earlier request. */
  private async read(): Promise<void> {
    if (this.isReading || this.isClosed) return;
    this.isReading = true;
    const search = this.params.get("q") ?? "";
    const isFirst = search !== this.searched || this.next === undefined;
    try {
      const { project, ids } = this.selection;
      const page = await metrics(project, ids, { pane: "distributions", search, limit: PAGE, after: isFirst ? null : this.next ?? null });
      const charts = this.metrics.add(page.metrics).filter(({ kind }) => KINDS.has(kind));
      this.charts = isFirst ? charts : [...this.charts, ...charts];
      this.next = page.next;
      if (!search) this.total = this.charts.length;
      fill(this.more, page.next === null ? null : h("p", { class: "muted", role: "status" }, "Loading …"));
    } catch (error) {
      this.next = null;
      fill(this.more, h("p", { class: "problem", role: "alert" }, format.message(error)));
    }
    this.searched = search;
    this.isReading = false;
    this.draw();
    if (search !== (this.params.get("q") ?? "")) void this.read();
  }

  private draw(): void {
    if (this.next === undefined) {
      fill(this.grid, h("p", { class: "state", role: "status" }, "Loading …"));
      return;
    }
    const [run = ""] = this.selection.ids;
    const matching: DistributionCard[] = [];
    for (const metric of this.charts) {
      const sets = metric.attributes.length ? metric.attributes : [{}];
      for (const [scope, attributes] of metric.scopes.flatMap((scope) => sets.map((set) => [scope, set] as const)).slice(0, MAX_SETS)) {
        const name = JSON.stringify([metricKey(metric), scope, attributes]);
        const make = () => {
          const card = new DistributionCard(run, this.selection.project, metric, scope, attributes);
          card.element.dataset.key = name;
          this.observer.observe(card.element);
          return card;
        };
        matching.push(remember(this.cards, name, make));
      }
    }
    if (matching.length) arrange(this.grid, matching.map(({ element }) => element));
    else {
      const any = this.total > 0 || (this.searched ?? "") !== "";
      fill(
        this.grid,
        h(
          "div",
          { class: "state" },
          h("h2", {}, any ? "No matching distributions" : "No distributions yet"),
          any ? null : h("p", {}, "Log one with ", h("code", {}, "run.log({\"gradients\": tensormeter.Histogram(tensor)})"), ", or watch a whole model with ", h("code", {}, "run.watch(model)"), "."),
        ),
      );
    }
    for (const card of matching) card.draw();
  }

  onUpdate(update: Update): void {
    for (const card of this.cards.values()) if (update.many || update.metrics?.includes(card.metric.name)) card.scheduleLoad();
    this.hasNew ||= update.many === true || (update.metrics?.some((name) => this.metrics.named(name).length === 0) ?? false);
  }

  /** Read the first page again if there may be new metrics on it. */
  onReload(): void {
    if (!this.hasNew || this.charts.length > PAGE) return;
    this.hasNew = false;
    this.searched = undefined;
    void this.read();
  }

  close(): void {
    this.isClosed = true;
    this.observer.disconnect();
    this.resized.disconnect();
    for (const card of this.cards.values()) card.close();
  }
}

class DistributionCard {
  readonly element: HTMLElement;
  private readonly heat = h("canvas", { class: "heat", role: "img" });
  private readonly single = h("canvas", { class: "single", role: "img" });
  private readonly slider = h("input", { type: "range", min: 0, value: 0, "aria-label": "Step", on: { input: () => this.draw() } });
  private readonly words = h("p", { class: "remark" });
  private readonly status = h("p", { class: "status", role: "status" }, "Loading …");
  private points: api.HistogramPoint[] = [];
  private timer = 0;
  private visible = false;
  /** Whether there are points to read. */
  private stale = true;

  constructor(
    private readonly run: string,
    private readonly project: string,
    readonly metric: Chart,
    private readonly scope: string,
    private readonly attributes: Record<string, unknown>,
  ) {
    const from = metric.scopes.length > 1 && scope ? [scope] : [];
    const title = [metric.title, ...from, ...Object.values(attributes).map(String)].join(" · ");
    this.heat.setAttribute("aria-label", `${title} over ${this.axis === "step" ? "steps" : "time"}; a stronger color means more values`);
    this.single.setAttribute("aria-label", `${title} at one ${this.axis === "step" ? "step" : "time"}`);
    this.heat.addEventListener("click", (event) => this.pick(event));
    this.element = h(
      "section",
      { class: "card", "aria-label": title },
      h("header", {}, h("h3", { title: metric.description || title }, title)),
      h("div", { class: "stage" }, this.heat, this.status),
      h("label", { class: "slider" }, this.axis === "step" ? "step " : "time ", this.slider),
      this.single,
      this.words,
    );
  }

  /** The axis: time since the start of the run for histograms without steps. */
  private get axis(): string {
    return this.metric.stepped ? "step" : "relative";
  }

  private describeX(x: number): string {
    return this.axis === "step" ? `step ${format.number(x)}` : `after ${format.duration(x)}`;
  }

  /** Read the points when the card comes into sight, and again if there are new ones. */
  setVisible(isVisible: boolean): void {
    this.visible = isVisible;
    if (!isVisible || !this.stale) return;
    this.stale = false;
    void this.load();
  }

  scheduleLoad(): void {
    this.stale ||= !this.visible;
    if (!this.visible || this.timer) return;
    this.timer = window.setTimeout(() => {
      this.timer = 0;
      void this.load();
    }, 1000);
  }

  close(): void {
    clearTimeout(this.timer);
  }

  private async load(): Promise<void> {
    try {
      const atEnd = Number(this.slider.value) >= this.points.length - 1;
      const attributes = Object.keys(this.attributes).length ? JSON.stringify(this.attributes) : "";
      const { scope } = this;
      const { name, kind, temporality, unit } = this.metric;
      this.points = await api.histograms(this.run, { project: this.project, metric: name, kind, temporality, scope, unit, attributes, x: this.axis, max_points: 200 });
      this.slider.max = String(Math.max(0, this.points.length - 1));
      if (atEnd) this.slider.value = this.slider.max;
      this.status.hidden = this.points.length > 0;
      this.status.textContent = "No points yet.";
      this.draw();
    } catch (error) {
      this.status.hidden = false;
      this.status.textContent = format.message(error);
    }
  }

  draw(): void {
    const index = Number(this.slider.value);
    const point = this.points[index];
    if (!point || !this.element.isConnected) return;
    const frame: Frame | null = drawHeatmap(this.heat, this.points, index, this.metric.unit, this.axis === "step" ? (x) => format.number(Math.round(x)) : format.duration);
    if (frame) drawSingle(this.single, point, frame, this.metric.unit);
    const mean = api.toNumber(point.sum) / point.count;
    this.words.textContent = [
      this.describeX(point.x),
      `${format.count(point.count)} values`,
      Number.isFinite(mean) ? `mean ${format.number(mean)}` : "",
      point.min === null ? "" : `from ${format.number(api.toNumber(point.min))}`,
      point.max === null ? "" : `to ${format.number(api.toNumber(point.max))}`,
    ]
      .filter(Boolean)
      .join(" · ");
    this.slider.setAttribute("aria-valuetext", this.describeX(point.x));
    this.element.dataset.drawn = String((Number(this.element.dataset.drawn) || 0) + 1);
  }

  private pick(event: MouseEvent): void {
    const place = this.heat.getBoundingClientRect();
    const share = (event.clientX - place.left - 64) / (place.width - 72);
    const first = this.points[0]?.x ?? 0;
    const last = this.points[this.points.length - 1]?.x ?? 0;
    const at = first + share * (last - first);
    let best = 0;
    for (const [i, { x }] of this.points.entries()) if (Math.abs(x - at) < Math.abs((this.points[best]?.x ?? 0) - at)) best = i;
    this.slider.value = String(best);
    this.draw();
  }
}
