// The charts of the selected runs, and the list of runs next to them.

import { button, fill, h, setText } from "../base/dom";
import * as format from "../base/format";
import { remember } from "../base/remember";
import * as route from "../base/route";
import type { ChartCardEvents } from "../chart/chartCard";
import { type ChartOptions, axisChoice, readChartOptions } from "../chart/chartOptions";
import { MetricSource } from "../chart/metricSource";
import type { Chart } from "../chart/variant";
import type { Update } from "../data/live";
import { ChartControls } from "../selection/chartControls";
import { FullScreen } from "../selection/fullscreen";
import { nameIn } from "../selection/metricIndex";
import { foldsIn } from "../selection/metricTree";
import { Provenance } from "../selection/provenance";
import { RunList } from "../selection/runList";
import type { RunSelection } from "../selection/runSelection";
import { SectionTree } from "../selection/sectionTree";
import type { Pane } from "./pane";

export class ChartsPane implements Pane {
  readonly element: HTMLElement;
  private params = new URLSearchParams();
  private readonly controls: ChartControls;
  private readonly sections: SectionTree;
  private readonly list: RunList | null;
  private readonly status = h("p", { class: "found muted", role: "status" });
  private readonly empty = h("div", { class: "state" });
  private readonly full: FullScreen;
  private readonly sources = new WeakMap<Chart, MetricSource>();
  private axis = "";
  private fingerprint = "";
  private isSearching = false;
  private problem = "";
  private isClosed = false;
  /** Marks of the checkpoints of a single run. */
  private readonly provenance: Provenance | null;
  /** Title in the address whose chart was not found. */
  private missing = "";

  constructor(private readonly selection: RunSelection) {
    const many = selection.ids.length > 1;
    this.provenance = many ? null : new Provenance(selection, false, () => this.drawMarks());
    const events: ChartCardEvents = {
      zoom: (window, x) => this.zoom(window, x),
      axis: (x) => route.change({ x }),
      hover: (readings) => this.list?.showReadings(readings),
    };
    this.full = new FullScreen(events);
    this.sections = new SectionTree(
      selection.tree,
      (chart) => this.source(chart),
      { ...events, full: (title) => route.change({ full: title }) },
      ({ open, closed }) => route.change({ open: route.join(open), closed: route.join(closed) }),
      !many,
    );
    this.list = many ? new RunList(selection) : null;
    this.controls = new ChartControls(selection);
    this.controls.element.append(this.status);
    const charts = h("div", { class: "content" }, this.controls.element, this.empty, this.sections.element);
    this.element = h("div", { class: many ? "pane beside" : "pane" }, this.list?.element, charts, this.full.element);
  }

  apply(params: URLSearchParams): void {
    this.params = params;
    this.selection.cache.setAxis(axisChoice(this.options(), this.selection.runs));
    this.axis = this.selection.axis;
    this.controls.update(params, this.axis);
    this.list?.update(params);
    void this.find();
    this.draw();
    // If options other than the runs changed, all visible charts are read again, from memory if possible.
    const { hidden, ...options } = this.options();
    const fingerprint = JSON.stringify([options, [...hidden], params.get("group"), params.get("colors")]);
    if (fingerprint === this.fingerprint) this.sections.redraw();
    else {
      this.sections.refresh();
      this.full.refresh();
    }
    this.fingerprint = fingerprint;
    this.showFull();
  }

  onMetrics(): void {
    if (this.selection.axis !== this.axis) {
      this.apply(this.params);
      return;
    }
    this.controls.update(this.params, this.axis);
    this.draw();
  }

  /** Zoom all charts. Charts without steps may use another axis; zooming into one chooses its axis for all. */
  private zoom(window: [number, number] | null, x?: string): void {
    zoom(window, window && x !== this.options().x ? x : undefined);
  }

  onUpdate(update: Update): void {
    this.list?.update(this.params);
    if (update.events) this.provenance?.refresh();
  }

  private drawMarks(): void {
    this.sections.refresh();
    this.full.refresh();
  }

  onReload(): void {
    this.list?.update(this.params);
  }

  onKey(event: KeyboardEvent): void {
    if (event.key === "0") zoom(null);
  }

  close(): void {
    this.isClosed = true;
    this.provenance?.close();
    this.full.close();
    this.sections.close();
  }

  private get search(): string {
    return this.params.get("q") ?? "";
  }

  /** Search for the text in the address. While the server searches, only the latest text waits. */
  private async find(): Promise<void> {
    const { tree } = this.selection;
    if (this.isSearching) return;
    this.isSearching = true;
    this.problem = "";
    while (tree.search !== this.search && !this.problem && !this.isClosed) {
      try {
        const searching = tree.load(this.search);
        this.drawStatus();
        await searching;
      } catch (error) {
        this.problem = format.message(error);
      }
      this.draw();
    }
    this.isSearching = false;
    this.drawStatus();
  }

  /** Show the chart in the address in full screen. Its metric may have to be read first. */
  private showFull(): void {
    const title = this.params.get("full") ?? "";
    const metric = title ? this.selection.metrics.titled(title) : undefined;
    this.full.show(metric && this.source(metric));
    if (!title || metric || this.missing === title) return;
    this.missing = title;
    this.selection.tree.lookUp(title, [title, nameIn(title)].filter(Boolean)).then(
      () => this.isClosed || this.showFull(),
      () => {},
    );
  }

  private draw(): void {
    const { tree } = this.selection;
    this.drawStatus();
    this.empty.hidden = tree.matches > 0;
    if (tree.matches === 0) {
      const hasEnded = this.selection.runs.every((run) => run.ended);
      const promise = "Charts appear here automatically after the first call to run.log.";
      fill(
        this.empty,
        h("h2", {}, tree.total ? "No matching charts" : hasEnded ? "No metrics" : "No metrics yet"),
        tree.total
          ? h("p", {}, `${tree.total.toLocaleString("en")} charts do not match. `, button("Show all", () => route.change({ q: null })))
          : h("p", {}, hasEnded ? "No numbers were recorded. Texts, images and tables are in Media." : promise),
      );
    }
    this.sections.update(foldsIn(this.params));
  }

  private drawStatus(): void {
    const { tree } = this.selection;
    const total = tree.total.toLocaleString("en");
    const words = tree.search ? `${tree.matches.toLocaleString("en")} of ${total} charts match` : tree.isLocal ? "" : `${total} charts`;
    setText(this.status, this.problem ? `Search failed: ${this.problem}` : tree.search === this.search ? words : "Searching …");
    this.status.classList.toggle("problem", this.problem !== "");
    this.status.hidden = this.status.textContent === "";
  }

  private source(metric: Chart): MetricSource {
    const make = () => new MetricSource(this.selection.cache, metric, () => this.options(), () => this.selection.selectedRuns(this.params), (axis) => this.provenance?.marks(axis) ?? []);
    return remember(this.sources, metric, make);
  }

  private options(): ChartOptions {
    return readChartOptions(this.params, this.selection.axis);
  }
}

export function zoom(window: [number, number] | null, x?: string): void {
  route.change({ ...(x === undefined ? {} : { x }), from: window ? short(window[0]) : null, to: window ? short(window[1]) : null });
}

function short(value: number): string {
  return String(Number(value.toPrecision(12)));
}
