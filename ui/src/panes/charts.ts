// The charts of the selected runs, and the list of runs next to them.

import { button, fill, h } from "../base/dom";
import * as route from "../base/route";
import type { ChartCardEvents } from "../chart/chartCard";
import { type ChartOptions, readChartOptions } from "../chart/chartOptions";
import { MetricSource } from "../chart/metricSource";
import type { Chart } from "../chart/variant";
import { ChartControls } from "../selection/chartControls";
import { ChartSections } from "../selection/chartSections";
import { FullScreen } from "../selection/fullscreen";
import { trainingCharts, groupIntoSections } from "../selection/metricSections";
import { RunList } from "../selection/runList";
import type { RunSelection } from "../selection/runSelection";
import type { Pane } from "./pane";

export class ChartsPane implements Pane {
  readonly element: HTMLElement;
  private params = new URLSearchParams();
  private readonly controls: ChartControls;
  private readonly grid: ChartSections;
  private readonly list: RunList | null;
  private readonly empty = h("div", { class: "state" });
  private readonly full: FullScreen;
  private readonly sources = new Map<Chart, MetricSource>();
  private axis = "";
  private fingerprint = "";

  constructor(private readonly selection: RunSelection) {
    const many = selection.ids.length > 1;
    const events: ChartCardEvents = {
      zoom: (window, x) => this.zoom(window, x),
      axis: (x) => route.change({ x }),
      full: (title) => route.change({ full: title }),
      hover: (readings) => this.list?.showReadings(readings),
    };
    this.full = new FullScreen({ zoom: events.zoom, axis: (x) => route.change({ x }), hover: (readings) => this.list?.showReadings(readings) });
    this.grid = new ChartSections(events, (closed) => route.change({ closed: route.join(closed) }), !many);
    this.list = many ? new RunList(selection) : null;
    this.controls = new ChartControls(selection);
    const charts = h("div", { class: "content" }, this.controls.element, this.empty, this.grid.element);
    this.element = h("div", { class: many ? "pane beside" : "pane" }, this.list?.element, charts, this.full.element);
  }

  apply(params: URLSearchParams): void {
    this.params = params;
    const { x, explicitAxis, window } = this.options();
    this.selection.cache.setAxis({ x, explicitAxis, window });
    this.axis = this.selection.axis;
    this.controls.update(params, this.axis);
    this.list?.update(params);
    this.draw();
    // If options other than the runs changed, all visible charts are read again, from memory if possible.
    const { hidden, ...options } = this.options();
    const fingerprint = JSON.stringify([options, [...hidden], params.get("group"), params.get("colors")]);
    if (fingerprint !== this.fingerprint) this.grid.refresh();
    else this.grid.redraw();
    if (fingerprint !== this.fingerprint) this.full.refresh();
    this.fingerprint = fingerprint;
    const full = params.get("full");
    const { charts } = this.selection;
    const metric = charts.find(({ title }) => title === full) ?? charts.find(({ name }) => name === full);
    this.full.show(metric && this.source(metric));
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

  onUpdate(): void {
    this.list?.update(this.params);
  }

  onReload(): void {
    this.list?.update(this.params);
  }

  onKey(event: KeyboardEvent): void {
    if (event.key === "0") zoom(null);
  }

  close(): void {
    this.full.close();
    this.grid.close();
  }

  private draw(): void {
    const matching = trainingCharts(this.selection.charts, this.params.get("q") ?? "");
    this.empty.hidden = matching.length > 0;
    if (matching.length === 0) {
      const all = trainingCharts(this.selection.charts, "");
      fill(
        this.empty,
        h("h2", {}, all.length ? "No matching charts" : "No metrics yet"),
        all.length
          ? h("p", {}, `${all.length} charts do not match. `, button("Show all", () => route.change({ q: null })))
          : h("p", {}, "Charts appear here automatically after the first call to run.log."),
      );
    }
    this.grid.update(
      groupIntoSections(matching, (metric) => this.source(metric)),
      route.list(this.params, "closed"),
    );
  }

  private source(metric: Chart): MetricSource {
    const existing = this.sources.get(metric);
    if (existing) return existing;
    const source = new MetricSource(
      this.selection.cache,
      metric,
      () => this.options(),
      () => this.selection.selectedRuns(this.params),
    );
    this.sources.set(metric, source);
    return source;
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
