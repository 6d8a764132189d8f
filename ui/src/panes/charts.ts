// The charts of a selection of runs, and the list of the runs beside them.

import { button, fill, h } from "../base/dom";
import * as route from "../base/route";
import type { CardEvents } from "../chart/chartCard";
import { type Look, readLook } from "../chart/chartOptions";
import { MetricSource } from "../chart/metricSource";
import type { Chart } from "../chart/variant";
import { Controls } from "../selection/chartControls";
import { ChartGrid } from "../selection/chartSections";
import { FullScreen } from "../selection/fullscreen";
import { charted, sections } from "../selection/metricSections";
import { RunList } from "../selection/runList";
import type { Session } from "../selection/runSelection";
import type { Pane } from "./pane";

export class ChartsPane implements Pane {
  readonly element: HTMLElement;
  private params = new URLSearchParams();
  private readonly controls: Controls;
  private readonly grid: ChartGrid;
  private readonly list: RunList | null;
  private readonly empty = h("div", { class: "state" });
  private readonly full: FullScreen;
  private readonly sources = new Map<Chart, MetricSource>();
  private axis = "";
  private drawn = "";

  constructor(private readonly session: Session) {
    const many = session.ids.length > 1;
    const events: CardEvents = {
      zoom: (window, x) => this.zoom(window, x),
      axis: (x) => route.change({ x }),
      full: (title) => route.change({ full: title }),
      hover: (readings) => this.list?.show(readings),
    };
    this.full = new FullScreen({ zoom: events.zoom, axis: (x) => route.change({ x }), hover: (readings) => this.list?.show(readings) });
    this.grid = new ChartGrid(events, (closed) => route.change({ closed: route.joined(closed) }), !many);
    this.list = many ? new RunList(session) : null;
    this.controls = new Controls(session);
    const charts = h("div", { class: "content" }, this.controls.element, this.empty, this.grid.element);
    this.element = h("div", { class: many ? "pane beside" : "pane" }, this.list?.element, charts, this.full.element);
  }

  apply(params: URLSearchParams): void {
    this.params = params;
    const { x, chosen, window } = this.look();
    this.session.feed.want({ x, chosen, window });
    this.axis = this.session.axis;
    this.controls.update(params, this.axis);
    this.list?.update(params);
    this.draw();
    // What decides how it looks, apart from what is shown: then all in sight is read again, from memory if possible.
    const { hidden, ...look } = this.look();
    const drawn = JSON.stringify([look, [...hidden], params.get("group"), params.get("colors")]);
    if (drawn !== this.drawn) this.grid.refresh();
    else this.grid.redraw();
    if (drawn !== this.drawn) this.full.refresh();
    this.drawn = drawn;
    const full = params.get("full");
    const { charts } = this.session;
    const metric = charts.find(({ title }) => title === full) ?? charts.find(({ name }) => name === full);
    this.full.show(metric && this.source(metric));
  }

  onMetrics(): void {
    if (this.session.axis !== this.axis) {
      this.apply(this.params);
      return;
    }
    this.controls.update(this.params, this.axis);
    this.draw();
  }

  /** Charts without steps may be along another axis than the others; who zooms into one chooses it for all. */
  private zoom(window: [number, number] | null, x?: string): void {
    zoom(window, window && x !== this.look().x ? x : undefined);
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
    const shown = charted(this.session.charts, this.params.get("q") ?? "");
    this.empty.hidden = shown.length > 0;
    if (shown.length === 0) {
      const all = charted(this.session.charts, "");
      fill(
        this.empty,
        h("h2", {}, all.length ? "No chart has such a name" : "Nothing was logged yet"),
        all.length
          ? h("p", {}, `${all.length} charts have other names. `, button("Show all", () => route.change({ q: null })))
          : h("p", {}, "Charts appear here by themselves as soon as run.log is called."),
      );
    }
    this.grid.update(
      sections(shown, (metric) => this.source(metric)),
      route.list(this.params, "closed"),
    );
  }

  private source(metric: Chart): MetricSource {
    const known = this.sources.get(metric);
    if (known) return known;
    const made = new MetricSource(
      this.session.feed,
      metric,
      () => this.look(),
      () => this.session.selected(this.params),
    );
    this.sources.set(metric, made);
    return made;
  }

  private look(): Look {
    return readLook(this.params, this.session.axis);
  }
}

export function zoom(window: [number, number] | null, x?: string): void {
  route.change({ ...(x === undefined ? {} : { x }), from: window ? short(window[0]) : null, to: window ? short(window[1]) : null });
}

function short(value: number): string {
  return String(Number(value.toPrecision(12)));
}
