// A chart with its title, tools, plot and legend. It loads its points when it becomes visible.

import { button, drawing, fillOnChange, h, iconButton } from "../base/dom";
import { download } from "../base/download";
import * as format from "../base/format";
import * as tooltip from "../base/tooltip";
import type { ChartMark } from "./chartMarks";
import * as exportChart from "./exportChart";
import { Plot, type Reading, type Trace, type ChartView } from "./plot";
import { showReadings } from "./readingsTooltip";

export interface ChartSource {
  title: string;
  unit: string;
  description?: string;
  /** Read the data to draw. Called again after each notification of the source. */
  read: () => Promise<ChartView>;
  /** Call the listener when there is new data. Returns a function that unsubscribes. */
  subscribe?: (listener: () => void) => () => void;
  /** One line of text below the plot, for example the slowest rank. */
  remark?: string;
  /** Minimum interval between two reads while the data grows, in milliseconds. */
  refreshMs?: number;
  /** Whether the remark is a warning; default true. */
  warns?: boolean;
}

export interface ChartCardEvents {
  /** Zoom to a range of the axis `x`. */
  zoom: (window: [number, number] | null, x?: string) => void;
  /** Choose another axis. */
  axis?: (x: string) => void;
  full?: (title: string) => void;
  hover?: (readings: Reading[]) => void;
}

const HEIGHT = 234;
const REFRESH_MS = 250;
/** Time in which updates of several charts are collected, so that their points are requested together. */
const SOON_MS = 20;

export class ChartCard {
  readonly element: HTMLElement;
  private readonly area: HTMLElement;
  private readonly legend: HTMLElement;
  private readonly tools = h("div", { class: "tools" });
  private readonly last = h("span", { class: "last" });
  private readonly remark: HTMLElement;
  private readonly status: HTMLElement;
  private plot: Plot | null = null;
  private view: ChartView | null = null;
  private hidden = new Set<string>();
  private awake = false;
  private unsubscribe: (() => void) | null = null;
  private request = 0;
  private width = 0;
  private timer = 0;
  private refreshedAt = 0;

  constructor(
    readonly source: ChartSource,
    private readonly events: ChartCardEvents,
    private readonly tall = false,
    private readonly showsLegend = true,
  ) {
    this.area = h("div", { class: "plot" });
    this.legend = h("div", { class: "legend" });
    this.remark = h("p", { class: "remark" });
    this.status = h("p", { class: "status", role: "status" }, "Loading …");
    this.element = h(
      "section",
      { class: tall ? "card tall" : "card", "aria-label": source.title },
      h("header", {}, h("h3", { title: source.description || source.title }, source.title), this.last, this.tools),
      h("div", { class: "stage" }, this.area, this.status),
      this.remark,
      this.legend,
    );
  }

  /** Start drawing, when the card becomes visible. */
  wake(): void {
    if (this.awake) return;
    this.awake = true;
    if (!this.tools.hasChildNodes()) this.addTools();
    this.unsubscribe = this.source.subscribe?.(() => this.scheduleRefresh()) ?? null;
    void this.refresh();
  }

  /** Free the canvas, which is large, when the card is no longer visible. */
  sleep(): void {
    if (!this.awake) return;
    this.awake = false;
    this.unsubscribe?.();
    clearTimeout(this.timer);
    this.timer = 0;
    this.plot?.destroy();
    this.plot = null;
  }

  /** Read the width. Done for all cards together, because a read after each change would force a layout per card. */
  measure(): void {
    this.width = this.area.clientWidth;
  }

  async refresh(): Promise<void> {
    if (!this.awake) return;
    const request = ++this.request;
    this.refreshedAt = performance.now();
    try {
      const view = await this.source.read();
      if (request !== this.request || !this.awake) return;
      this.view = view;
      this.draw();
    } catch (error) {
      if (request !== this.request || !this.awake) return;
      this.showStatus(format.message(error), true);
    }
  }

  draw(): void {
    if (!this.view || !this.awake) return;
    const visible = { ...this.view, traces: this.view.traces.filter(({ label }) => !this.hidden.has(label)) };
    const empty = this.view.traces.every(({ x }) => x.length === 0);
    this.area.style.visibility = empty ? "hidden" : "";
    if (empty && this.view.window) this.offerZoomOut();
    else if (empty) this.showEmpty();
    else this.showStatus("");
    this.plot ??= new Plot(this.area, this.source.title, visible, {
      zoom: (window) => this.events.zoom(window, this.view?.x),
      hover: (...details) => this.hover(...details),
    });
    const height = this.tall ? Math.max(280, innerHeight - 170) : HEIGHT;
    if (!this.width) this.measure();
    this.plot.update(visible, this.width || 400, height);
    requestAnimationFrame(() => this.afterDraw());
  }

  private afterDraw(): void {
    if (!this.view || !this.plot) return;
    const { marked, outside } = this.plot;
    const [only] = this.view.traces;
    const value = this.view.traces.length === 1 && only ? only.y[only.y.length - 1] : undefined;
    this.last.textContent = value === undefined ? "" : format.withUnit(value, this.view.unit);
    this.last.classList.toggle("bad", value !== undefined && !Number.isFinite(value));
    const remark = this.source.remark ?? "";
    const sampled = this.view.traces.some((trace) => trace.sampled);
    const count = (n: number) => (sampled ? "some" : format.count(n));
    this.remark.classList.toggle("warn", (remark !== "" && this.source.warns !== false) || marked > 0);
    const words = [
      remark,
      marked ? `${count(marked)} not finite (✕ NaN, ▲ ∞)` : "",
      outside ? `${count(outside)} outliers not shown` : "",
    ];
    this.remark.textContent = words.filter(Boolean).join(" · ");
    this.element.dataset.drawn = String((Number(this.element.dataset.drawn) || 0) + 1);
    this.drawLegend(this.showsLegend || this.view.grouped ? this.view.traces : []);
  }

  private drawLegend(traces: Trace[]): void {
    const shown = traces.length < 2 || traces.length > 24 ? [] : traces;
    fillOnChange(this.legend, [shown.map(({ label, color }) => [label, color]), [...this.hidden]], () =>
      shown.map(({ label, color }) => {
        const swatch = h("i", { class: "swatch" });
        swatch.style.background = color;
        const entry = button("", (event) => this.toggle(label, event.altKey || event.shiftKey), {
          "aria-pressed": String(!this.hidden.has(label)),
          title: "Click to hide or show; Shift-click to show only this line",
        });
        entry.append(swatch, label);
        return entry;
      }),
    );
  }

  private toggle(label: string, alone: boolean): void {
    const labels = this.view?.traces.map((trace) => trace.label) ?? [];
    if (alone) this.hidden = new Set(labels.filter((other) => other !== label));
    else if (!this.hidden.delete(label)) this.hidden.add(label);
    this.draw();
  }

  private hover(at: number | null, readings: Reading[], place: { left: number; top: number }, marks: ChartMark[]): void {
    if (at === null || !this.view) {
      tooltip.hide();
      this.events.hover?.([]);
      return;
    }
    const { xKind, xLabel, unit } = this.view;
    const position = xKind === "duration" && at >= 1 ? format.duration(at) : format.number(xLabel === "step" ? Math.round(at) : at);
    const title = xKind === "time" ? format.moment(at) : `${xLabel} ${position}`;
    showReadings(title, readings, unit, place, marks);
    this.events.hover?.(readings);
  }

  /** Refresh soon, but only once for many updates within a short time. */
  private scheduleRefresh(): void {
    if (this.timer) return;
    const due = this.refreshedAt + (this.source.refreshMs ?? REFRESH_MS);
    this.timer = window.setTimeout(() => {
      this.timer = 0;
      void this.refresh();
    }, Math.max(SOON_MS, due - performance.now()));
  }

  private offerZoomOut(): void {
    // Keep the existing button: the user may be about to click it.
    if (this.status.querySelector("button")) return;
    this.showStatus("No points in this range. ");
    this.status.append(button("Zoom out", () => this.events.zoom(null)));
  }

  private showEmpty(): void {
    const { text, x } = this.view?.hint ?? { text: "No points yet." };
    if (this.status.dataset.status === `${text} ${x}` && this.status.querySelector("button")) return;
    this.showStatus(text);
    this.status.dataset.status = `${text} ${x}`;
    const { axis } = this.events;
    if (x && axis) this.status.append(" ", button("Show by time", () => axis(x)));
  }

  private showStatus(text: string, bad = false): void {
    this.status.textContent = text;
    this.status.hidden = text === "";
    this.status.classList.toggle("bad", bad);
  }

  private addTools(): void {
    const { title } = this.source;
    this.tools.append(this.saveMenu());
    if (this.events.full) this.tools.append(iconButton("expand", `Show ${title} full screen`, () => this.events.full?.(title)));
  }

  private saveMenu(): HTMLElement {
    const menu = h("div", { class: "menu", role: "menu" });
    const { title } = this.source;
    const items: [string, () => Promise<Blob | null> | Blob | null][] = [
      ["PNG", () => (this.plot && this.view ? exportChart.toPng(title, this.plot, this.view.traces) : null)],
      ["SVG", () => (this.plot && this.view ? exportChart.toSvg(title, this.view, this.plot) : null)],
      ["CSV", () => (this.view ? exportChart.toCsv(this.view) : null)],
    ];
    for (const [kind, make] of items) {
      menu.append(
        button(
          kind,
          async () => {
            details.open = false;
            const blob = await make();
            if (blob) download(`${title}.${kind.toLowerCase()}`, blob);
          },
          { role: "menuitem" },
        ),
      );
    }
    const summary = h("summary", { class: "icon", title: `Save ${title}`, "aria-label": `Save ${title}` });
    summary.append(drawing("save"));
    const details = h("details", { class: "dropdown" }, summary, menu);
    return details;
  }
}
