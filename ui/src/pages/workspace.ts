// The page of one run, or of several runs to compare: a status header and tabs with panes.

import { fill, h } from "../base/dom";
import * as route from "../base/route";
import { onTheme } from "../base/theme";
import type { Update } from "../data/live";
import { ChartsPane } from "../panes/charts";
import { ConfigDiffPane } from "../panes/configDiff";
import { DistributionsPane } from "../panes/distributions";
import { Health } from "../panes/health";
import { LogsPane } from "../panes/logs";
import { MediaPane } from "../panes/media";
import { OverviewPane } from "../panes/overview";
import type { Pane } from "../panes/pane";
import { SystemPane } from "../panes/system";
import { foldsIn } from "../selection/metricTree";
import type { RunSelection } from "../selection/runSelection";
import type { PageContext, Page } from "./page";

const ONE = { charts: "Charts", system: "System", distributions: "Distributions", media: "Media", logs: "Logs", overview: "Overview" };
const MANY = { charts: "Charts", difference: "Configuration" };
const RELOAD_MS = 3000;
/** Reload interval for a run with more metrics than are read at once. */
const WIDE_MS = 10_000;
/** Reload interval for several runs, unless a new metric or state arrives. */
const QUIET_MS = 30_000;

export class Workspace implements Page {
  readonly element = h("div", { class: "workspace" }, h("p", { class: "state", role: "status" }, "Loading …"));
  private readonly health: Health;
  private pane: Pane | null = null;
  private params = new URLSearchParams();
  private readonly offTheme: () => void;
  private reloading = 0;
  private reloadAt = Number.POSITIVE_INFINITY;
  private closed = false;

  constructor(
    private readonly context: PageContext,
    private readonly selection: RunSelection,
    private readonly tab: string,
  ) {
    const { project, ids } = selection;
    this.health = new Health(this.selection);
    this.offTheme = onTheme(() => this.pane?.apply(this.params));
    context.title(ids.length > 1 ? `${ids.length} runs` : (ids[0] ?? ""), project);
    void this.load();
  }

  apply(params: URLSearchParams): void {
    this.params = params;
    this.pane?.apply(params);
    this.health.apply();
    this.drawTabs();
  }

  onKey(event: KeyboardEvent): void {
    this.pane?.onKey?.(event);
  }

  close(): void {
    this.closed = true;
    clearTimeout(this.reloading);
    this.offTheme();
    this.pane?.close();
    this.health.close();
    this.selection.cache.close();
  }

  private readonly tabs = h("nav", { class: "tabs", "aria-label": "Panes" });

  private async load(): Promise<void> {
    try {
      await this.selection.load();
    } catch (error) {
      if (!this.closed) fill(this.element, this.context.onError(error, () => void this.load()));
      return;
    }
    if (this.closed) return;
    const single = this.selection.single;
    if (single) this.context.title(single.name || single.id, this.selection.project);
    this.pane = this.makePane();
    this.drawTabs();
    fill(this.element, h("div", { class: "top" }, this.health.element, this.tabs), this.pane.element);
    this.pane.apply(this.params);
    this.tabs.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
    this.health.update();
    void this.selection.loadMore(foldsIn(this.params), () => this.closed || this.pane?.onMetrics?.());
    this.selection.cache.follow(
      (update) => this.onUpdate(update),
      (connected) => this.health.connection(connected),
      () => this.pane?.onStart?.(),
    );
  }

  private onUpdate(update: Update): void {
    const isNew = this.selection.applyUpdate(update);
    this.pane?.onUpdate?.(update);
    this.health.update();
    this.reloadIn(isNew ? RELOAD_MS : this.selection.ids.length > 1 ? QUIET_MS : this.selection.tree.isLocal ? RELOAD_MS : WIDE_MS);
  }

  private reloadIn(milliseconds: number): void {
    const at = Date.now() + milliseconds;
    if (at >= this.reloadAt) return;
    this.reloadAt = at;
    clearTimeout(this.reloading);
    this.reloading = window.setTimeout(() => void this.reload(), milliseconds);
  }

  private async reload(): Promise<void> {
    this.reloadAt = Number.POSITIVE_INFINITY; // an update during this reload needs another one
    try {
      if (await this.selection.reload(foldsIn(this.params))) this.pane?.onMetrics?.();
      this.pane?.onReload?.();
      this.health.update();
    } catch {
      if (!this.closed) this.reloadIn(WIDE_MS); // a banner reports a lost connection
    }
  }

  private makePane(): Pane {
    switch (this.tab) {
      case "difference":
        return new ConfigDiffPane(this.selection);
      case "distributions":
        return new DistributionsPane(this.selection);
      case "logs":
        return new LogsPane(this.selection);
      case "media":
        return new MediaPane(this.selection);
      case "overview":
        return new OverviewPane(this.selection);
      case "system":
        return new SystemPane(this.selection);
      default:
        return new ChartsPane(this.selection);
    }
  }

  private drawTabs(): void {
    const base = ["p", this.selection.project, "runs", this.selection.ids.join(",")];
    const shared = new URLSearchParams([...this.params].filter(([name]) => SHARED.has(name)));
    const labels = this.selection.ids.length > 1 ? MANY : ONE;
    fill(
      this.tabs,
      ...Object.entries(labels).map(([tab, label]) =>
        h(
          "a",
          { href: route.address(tab === "charts" ? base : [...base, tab], shared), "aria-current": tab === this.tab ? "page" : undefined },
          label,
        ),
      ),
    );
  }
}

/** Parameters that apply to all panes. */
const SHARED = new Set(["x", "from", "to", "s", "colors", "hide", "group", "attempts", "parents"]);
