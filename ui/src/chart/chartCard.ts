// A chart in its frame: title, tools, plot, legend. It reads its points when it comes into sight.

import { button, drawing, fill, h, iconButton } from "../base/dom";
import * as format from "../base/format";
import * as save from "./exportChart";
import { Plot, type Reading, type Trace, type View } from "./plot";
import * as tooltip from "./tooltip";

export interface Source {
  title: string;
  unit: string;
  description?: string;
  /** What to draw now; called again whenever the source says that it changed. */
  read: () => Promise<View>;
  /** Calls back when there is more; returns how to stop that. */
  on?: (listener: () => void) => () => void;
  /** One line below the plot, such as which rank is the slowest. */
  remark?: () => string;
  /** Milliseconds between two readings while it grows. */
  pace?: number;
  /** False: what it remarks is no trouble. */
  warns?: boolean;
}

export interface CardEvents {
  /** Zoom to a range of the axis `x`. */
  zoom: (window: [number, number] | null, x?: string) => void;
  /** Choose another axis. */
  axis?: (x: string) => void;
  full?: (title: string) => void;
  hover?: (readings: Reading[]) => void;
}

const HEIGHT = 234;
const FRESH_MS = 250;

export class Card {
  readonly element: HTMLElement;
  private readonly area: HTMLElement;
  private readonly legend: HTMLElement;
  private readonly tools = h("div", { class: "tools" });
  private readonly last = h("span", { class: "last" });
  private readonly remark: HTMLElement;
  private readonly status: HTMLElement;
  private plot: Plot | null = null;
  private view: View | null = null;
  private hidden = new Set<string>();
  private awake = false;
  private off: (() => void) | null = null;
  private request = 0;
  private width = 0;
  private timer = 0;

  constructor(
    readonly source: Source,
    private readonly events: CardEvents,
    private readonly tall = false,
    private readonly listed = true,
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

  /** Comes into sight. */
  wake(): void {
    if (this.awake) return;
    this.awake = true;
    if (!this.tools.hasChildNodes()) this.equip();
    this.off = this.source.on?.(() => this.soon()) ?? null;
    void this.refresh();
  }

  /** Goes out of sight: canvases are large, so they go. */
  sleep(): void {
    if (!this.awake) return;
    this.awake = false;
    this.off?.();
    clearTimeout(this.timer);
    this.timer = 0;
    this.plot?.destroy();
    this.plot = null;
  }

  /** Look how wide it is; not in between changes of other cards, each of which would have the page laid out again. */
  measure(): void {
    this.width = this.area.clientWidth;
  }

  async refresh(): Promise<void> {
    if (!this.awake) return;
    const request = ++this.request;
    try {
      const view = await this.source.read();
      if (request !== this.request || !this.awake) return;
      this.view = view;
      this.draw();
    } catch (error) {
      if (request !== this.request || !this.awake) return;
      this.say(error instanceof Error ? error.message : String(error), true);
    }
  }

  draw(): void {
    if (!this.view || !this.awake) return;
    const shown = { ...this.view, traces: this.view.traces.filter(({ label }) => !this.hidden.has(label)) };
    const empty = this.view.traces.every(({ x }) => x.length === 0);
    this.area.style.visibility = empty ? "hidden" : "";
    if (empty && this.view.window) this.offerAll();
    else if (empty) this.sayEmpty();
    else this.say("");
    this.plot ??= new Plot(this.area, this.source.title, shown, {
      zoom: (window) => this.events.zoom(window, this.view?.x),
      hover: (at, readings, place) => this.hover(at, readings, place),
    });
    const height = this.tall ? Math.max(280, innerHeight - 170) : HEIGHT;
    if (!this.width) this.measure();
    this.plot.update(shown, this.width || 400, height);
    requestAnimationFrame(() => this.afterDraw());
  }

  private afterDraw(): void {
    if (!this.view || !this.plot) return;
    const { marked, outside } = this.plot;
    const [only] = this.view.traces;
    const value = this.view.traces.length === 1 && only ? only.y[only.y.length - 1] : undefined;
    this.last.textContent = value === undefined ? "" : format.withUnit(value, this.view.unit);
    this.last.classList.toggle("bad", value !== undefined && !Number.isFinite(value));
    const said = this.source.remark?.() ?? "";
    const sampled = this.view.traces.some((trace) => trace.sampled);
    const some = (n: number) => (sampled ? "some" : format.count(n));
    this.remark.classList.toggle("warn", (said !== "" && this.source.warns !== false) || marked > 0);
    const words = [
      said,
      marked ? `${some(marked)} not finite (✕ NaN, ▲ ∞)` : "",
      outside ? `${some(outside)} outliers outside` : "",
    ];
    this.remark.textContent = words.filter(Boolean).join(" · ");
    this.element.dataset.drawn = String((Number(this.element.dataset.drawn) || 0) + 1);
    this.drawLegend(this.listed || this.view.grouped ? this.view.traces : []);
  }

  private drawLegend(traces: Trace[]): void {
    if (traces.length < 2 || traces.length > 24) {
      this.legend.textContent = this.legend.dataset.labels = "";
      return;
    }
    const labels = traces.map(({ label, color }) => `${label}${color}`).join("\n") + [...this.hidden].join("\n");
    if (this.legend.dataset.labels === labels) return;
    this.legend.dataset.labels = labels;
    fill(
      this.legend,
      ...traces.map(({ label, color }) => {
        const swatch = h("i", { class: "swatch" });
        swatch.style.background = color;
        const entry = button("", (event) => this.toggle(label, event.altKey || event.shiftKey), {
          "aria-pressed": String(!this.hidden.has(label)),
          title: "Click to hide or show; with Shift to show it alone",
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

  private hover(at: number | null, readings: Reading[], place: { left: number; top: number }): void {
    if (at === null || !this.view) {
      tooltip.hide();
      this.events.hover?.([]);
      return;
    }
    const { xKind, xLabel, unit } = this.view;
    const where = xKind === "duration" && at >= 1 ? format.duration(at) : format.number(xLabel === "step" ? Math.round(at) : at);
    const title = xKind === "time" ? format.moment(at) : `${xLabel} ${where}`;
    tooltip.show(title, readings, unit, place);
    this.events.hover?.(readings);
  }

  /** Many updates in a short time are one. */
  private soon(): void {
    if (this.timer) return;
    this.timer = window.setTimeout(() => {
      this.timer = 0;
      void this.refresh();
    }, this.source.pace ?? FRESH_MS);
  }

  private offerAll(): void {
    // Somebody may be about to click on what is there.
    if (this.status.querySelector("button")) return;
    this.say("Nothing in this range. ");
    this.status.append(button("Zoom out", () => this.events.zoom(null)));
  }

  private sayEmpty(): void {
    const { text, x } = this.view?.hint ?? { text: "No points yet." };
    if (this.status.dataset.said === `${text} ${x}` && this.status.querySelector("button")) return;
    this.say(text);
    this.status.dataset.said = `${text} ${x}`;
    const { axis } = this.events;
    if (x && axis) this.status.append(" ", button("Show them by time", () => axis(x)));
  }

  private say(text: string, bad = false): void {
    this.status.textContent = text;
    this.status.hidden = text === "";
    this.status.classList.toggle("bad", bad);
  }

  private equip(): void {
    const { title } = this.source;
    this.tools.append(this.saveMenu());
    if (this.events.full) this.tools.append(iconButton("expand", `Show ${title} full screen`, () => this.events.full?.(title)));
  }

  private saveMenu(): HTMLElement {
    const menu = h("div", { class: "menu", role: "menu" });
    const { title } = this.source;
    const items: [string, () => Promise<Blob | null> | Blob | null][] = [
      ["PNG", () => (this.plot && this.view ? save.png(title, this.plot, this.view.traces) : null)],
      ["SVG", () => (this.plot && this.view ? save.drawing(title, this.view, this.plot) : null)],
      ["CSV", () => (this.view ? save.csv(this.view) : null)],
    ];
    for (const [kind, make] of items) {
      menu.append(
        button(
          kind,
          async () => {
            details.open = false;
            const blob = await make();
            if (blob) save.download(`${title}.${kind.toLowerCase()}`, blob);
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
