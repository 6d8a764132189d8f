// The machine: GPUs by node, host, process, phases of a step, and what logging costs.

import * as api from "../api";
import { type Source } from "../chart/card";
import type { Trace, View } from "../chart/plot";
import { MetricSource } from "../chart/source";
import { fill, h } from "../dom";
import * as format from "../format";
import type { Update } from "../live";
import * as route from "../route";
import { lineColor } from "../theme";
import { isMachine, readLook, zoom } from "./chartspane";
import { ChartGrid, type Section, matcher } from "./charts";
import { Controls } from "./controls";
import type { Session } from "./session";
import type { Pane } from "./workspace";

const SECTIONS: [string, RegExp][] = [
  ["Phases of a step", /phase|^tensormeter\.(step\.|throughput)/],
  ["GPU", /^hw\.|^tensormeter\.gpu/],
  ["Process", /^process\.|^cpython\.|^gc\./],
  ["Host", /^system\.|^container\.|^k8s\./],
  ["Logging itself", /^tensormeter\./],
];

/** Phases in the order in which a step goes through them. */
const ORDER = ["data", "data_loading", "forward", "model_forward", "backward", "model_backward", "optimizer", "optimizer_update", "checkpoint", "checkpoint_save"];
const PHASE = /(?:^|[./])phase(?:[./]|$)/;

export class SystemPane implements Pane {
  readonly element: HTMLElement;
  private params = new URLSearchParams();
  private readonly controls: Controls;
  private readonly grid: ChartGrid;
  private readonly fleet = h("section", { class: "fleet", "aria-label": "GPUs by node" });
  private readonly empty = h("div", { class: "state", hidden: true });
  private readonly sources = new Map<string, Source>();
  private timer = 0;

  constructor(private readonly session: Session) {
    this.controls = new Controls(session);
    this.grid = new ChartGrid({ zoom }, (closed) => route.change({ closed: route.joined(closed) }), true);
    this.element = h("div", { class: "pane" }, h("div", { class: "content" }, this.controls.element, this.fleet, this.empty, this.grid.element));
    void this.drawFleet();
  }

  /** The machine goes by the clock unless somebody says otherwise. */
  private look() {
    return { ...readLook(this.params), x: this.params.get("x") ?? "relative", ranks: "each" as const };
  }

  apply(params: URLSearchParams): void {
    this.params = params;
    const look = this.look();
    this.session.feed.want({ x: look.x, window: look.window });
    this.controls.update(withAxis(params, look.x));
    this.controls.hideRanks();
    this.draw();
    this.grid.refresh();
  }

  onMetrics(): void {
    this.draw();
  }

  onUpdate(update: Update): void {
    if (this.timer || !update.metrics?.some((name) => name.startsWith("hw."))) return;
    this.timer = window.setTimeout(() => {
      this.timer = 0;
      void this.drawFleet();
    }, 5000);
  }

  onKey(event: KeyboardEvent): void {
    if (event.key === "0") zoom(null);
  }

  close(): void {
    clearTimeout(this.timer);
    this.grid.close();
  }

  private draw(): void {
    const matches = matcher(this.params.get("q") ?? "");
    const metrics = this.session.metrics.filter((metric) => (isMachine(metric) || PHASE.test(metric.name)) && matches(metric.name));
    const found = new Map<string, Source[]>();
    const phases = metrics.filter(({ name, kind }) => PHASE.test(name) && (kind === "gauge" || kind === "sum"));
    if (phases.length) found.set("Phases of a step", [this.phases(phases)]);
    for (const metric of metrics.sort((a, b) => (a.name < b.name ? -1 : 1))) {
      const [section] = SECTIONS.find(([, pattern]) => pattern.test(metric.name)) ?? ["Others"];
      found.set(section, [...(found.get(section) ?? []), this.source(metric)]);
    }
    const order = SECTIONS.map(([name]) => name);
    const sections: Section[] = [...found].map(([name, sources]) => ({ name, sources })).sort((a, b) => order.indexOf(a.name) - order.indexOf(b.name));
    this.grid.update(sections, route.list(this.params, "closed"));
    this.empty.hidden = sections.length > 0;
    fill(
      this.empty,
      h("h2", {}, this.params.get("q") ? "Nothing has such a name" : "No statistics of the machine yet"),
      h("p", {}, "They come from the agent beside the trainer, every few seconds, unless sensors are off."),
    );
  }

  private source(metric: api.Metric): Source {
    const known = this.sources.get(metric.name);
    if (known) return known;
    const made = new MetricSource(
      this.session.feed,
      metric,
      () => this.look(),
      () => this.session.selected(this.params),
    );
    this.sources.set(metric.name, made);
    return made;
  }

  /** The phases of a step upon each other; the uppermost line is the whole step. */
  private phases(metrics: api.Metric[]): Source {
    const name = "phases, stacked";
    const known = this.sources.get(name);
    if (known) return known;
    const read = async (): Promise<View> => {
      const look = this.look();
      const answers = await Promise.all(metrics.map((metric) => this.session.feed.load(metric.name)));
      const lines = answers.flat().map((line): [string, api.Line] => [phaseOf(line), line]);
      return {
        traces: stack(lines),
        xKind: look.x === "time" ? "time" : "number",
        xLabel: look.x,
        xLog: false,
        yLog: false,
        unit: metrics[0]?.unit ?? "s",
        window: look.window,
        clip: look.clip,
      };
    };
    const made: Source = {
      title: name,
      unit: metrics[0]?.unit ?? "s",
      description: "Time in each phase of a step, one above the other",
      read,
      on: (listener) => {
        const offs = metrics.map((metric) => this.session.feed.on(metric.name, listener));
        return () => {
          for (const off of offs) off();
        };
      },
    };
    this.sources.set(name, made);
    return made;
  }

  /** Each GPU of the fleet as a cell: which one idles is seen at once, also among 512. */
  private async drawFleet(): Promise<void> {
    const [run = ""] = this.session.ids;
    const { project } = this.session;
    if (!this.session.metrics.some(({ name }) => name === "hw.gpu.utilization")) return;
    try {
      const { series } = await api.series({ runs: [api.reference(project, run)], metrics: ["hw.gpu.utilization", "hw.gpu.memory.utilization"], x: "time", max_points: 4 });
      const nodes = new Map<string, Map<string, { name: string; busy: number; memory: number }>>();
      const hosts = new Map(this.session.single?.processes.map(({ id, host }) => [id, host ?? id]));
      for (const line of series) {
        const node = hosts.get(line.process) ?? line.process;
        const gpus = nodes.get(node) ?? new Map();
        nodes.set(node, gpus);
        const id = String(line.attributes["hw.id"] ?? line.process);
        const gpu = gpus.get(id) ?? { name: String(line.attributes["hw.name"] ?? id), busy: Number.NaN, memory: Number.NaN };
        const last = line.y[line.y.length - 1] as number;
        if (line.metric === "hw.gpu.utilization") gpu.busy = last;
        else gpu.memory = last;
        gpus.set(id, gpu);
      }
      const all = [...nodes.values()].flatMap((gpus) => [...gpus.values()]);
      const idle = all.filter(({ busy }) => busy < 0.1).length;
      const rows = [...nodes].sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true })).map(([node, gpus]) =>
        h(
          "div",
          { class: "node" },
          h("span", { class: "name", title: node }, node),
          ...[...gpus].map(([id, { name, busy, memory }]) => {
            const percent = Math.round(busy * 100);
            const words = `${name} ${id}: ${Number.isFinite(busy) ? `${percent} % busy` : "unknown"}${Number.isFinite(memory) ? `, ${Math.round(memory * 100)} % of memory` : ""}`;
            const cell = h("span", { class: `gpu${busy < 0.1 ? " idle" : ""}`, title: words, role: "img", "aria-label": words }, Number.isFinite(busy) ? percent : "?");
            cell.style.setProperty("--busy", `${Number.isFinite(busy) ? percent : 0}%`);
            return cell;
          }),
        ),
      );
      fill(
        this.fleet,
        h("h2", {}, "GPUs by node ", h("span", { class: "muted" }, `${all.length} on ${nodes.size} ${nodes.size === 1 ? "node" : "nodes"}${idle ? `, ${idle} idle` : ""}; percent busy, last reading`)),
        ...rows,
      );
    } catch {
      // The charts below say what is wrong.
    }
  }
}

function phaseOf(line: api.Line): string {
  const entry = Object.entries(line.attributes).find(([key]) => /phase/.test(key) || key === "name");
  return entry ? String(entry[1]) : (line.metric.split(PHASE).pop() ?? line.metric).replace(/^[./]/, "") || line.metric;
}

function stack(lines: [string, api.Line][]): Trace[] {
  const byPhase = new Map<string, api.Line>();
  for (const [phase, line] of lines) if (!byPhase.has(phase)) byPhase.set(phase, line);
  const names = [...byPhase.keys()].sort((a, b) => position(a) - position(b) || (a < b ? -1 : 1));
  const traces: Trace[] = [];
  let below: { x: Float64Array; y: Float64Array } | null = null;
  for (const [index, name] of names.entries()) {
    const line = byPhase.get(name) as api.Line;
    const base: { x: Float64Array; y: Float64Array } | null = below;
    const x: Float64Array = line.x;
    const low: Float64Array = Float64Array.from(x, (at) => (base ? valueAt(base, at) : 0));
    const high: Float64Array = Float64Array.from(line.y, (value, i) => value + (low[i] as number));
    const own = line.y;
    traces.push({ x, y: high, label: name, color: lineColor(index), stack: true, band: { x, low, middle: high, high }, note: (i) => `${format.withUnit(own[i] as number, "s")} of it` });
    below = { x, y: high };
  }
  return traces;
}

function valueAt({ x, y }: { x: Float64Array; y: Float64Array }, at: number): number {
  let low = 0;
  let high = x.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if ((x[middle] as number) <= at) low = middle;
    else high = middle - 1;
  }
  return (y[low] as number) || 0;
}

function position(phase: string): number {
  const found = ORDER.indexOf(phase);
  return found < 0 ? ORDER.length : found;
}

function withAxis(params: URLSearchParams, x: string): URLSearchParams {
  const copy = new URLSearchParams(params);
  copy.set("x", x);
  return copy;
}
