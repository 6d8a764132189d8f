// The machine: GPUs by node, host, process, phases of a step, and what logging costs.

import { fill, h, options } from "../base/dom";
import * as route from "../base/route";
import type { Source } from "../chart/chartCard";
import { type Look, readLook } from "../chart/chartOptions";
import { MetricSource } from "../chart/metricSource";
import { CLOCK, PHASE, type PhaseChoice, phaseLag, stackedPhases } from "../chart/phaseChart";
import type { Chart } from "../chart/variant";
import * as api from "../data/api";
import type { Update } from "../data/live";
import { Controls } from "../selection/chartControls";
import { ChartGrid } from "../selection/chartSections";
import { FullScreen } from "../selection/fullscreen";
import { Fleet } from "../selection/gpuGrid";
import { type Section, isMachine, matcher } from "../selection/metricSections";
import type { Session } from "../selection/runSelection";
import { zoom } from "./charts";
import type { Pane } from "./pane";

const PHASES = "Phases of a step";
const SECTIONS: [string, RegExp][] = [
  [PHASES, /phase|^tensormeter\.(step\.|throughput)/],
  ["GPU", /^hw\.|^tensormeter\.gpu/],
  ["Process", /^process\.|^cpython\.|^gc\./],
  ["Host", /^system\.|^container\.|^k8s\./],
  ["Logging itself", /^tensormeter\./],
];
/** Processes beyond which a chart shows their median and range at first. */
const EACH = 8;

export class SystemPane implements Pane {
  readonly element: HTMLElement;
  private params = new URLSearchParams();
  private readonly controls: Controls;
  private readonly clock = select("Clock of phases", "clock");
  private readonly process = select("Process", "process");
  private readonly grid: ChartGrid;
  private readonly fleet: Fleet;
  private readonly full = new FullScreen({ zoom: (window) => zoom(window) });
  private readonly empty = h("div", { class: "state", hidden: true });
  private readonly sources = new Map<string, Source>();

  constructor(private readonly session: Session) {
    this.controls = new Controls(session);
    this.controls.element.append(this.clock.label, this.process.label);
    this.fleet = new Fleet(session);
    const full = (title: string) => route.change({ full: title });
    this.grid = new ChartGrid({ zoom: (window) => zoom(window), full }, (closed) => route.change({ closed: route.joined(closed) }), true);
    this.element = h("div", { class: "pane" }, h("div", { class: "content" }, this.controls.element, this.fleet.element, this.empty, this.grid.element), this.full.element);
  }

  /** The machine goes by the clock unless somebody says otherwise. */
  private look(): Look {
    const look = readLook(this.params, "relative");
    const many = this.session.metrics.some(({ processes }) => processes > EACH);
    const ranks = this.params.has("ranks") || many ? look.ranks : "each";
    return { ...look, ranks, process: this.params.get("process") };
  }

  apply(params: URLSearchParams): void {
    this.params = params;
    const look = this.look();
    this.session.feed.want({ x: look.x, chosen: true, window: look.window });
    this.controls.update(params, "relative");
    this.controls.ranksAre(look.ranks);
    this.drawChoices();
    this.draw();
    this.grid.refresh();
    this.full.refresh();
  }

  onMetrics(): void {
    this.draw();
  }

  onUpdate(update: Update): void {
    if (update.metrics?.some((name) => name.startsWith("hw."))) this.fleet.soon();
  }

  onKey(event: KeyboardEvent): void {
    if (event.key === "0") zoom(null);
  }

  close(): void {
    this.full.close();
    this.fleet.close();
    this.grid.close();
  }

  private draw(): void {
    const matches = matcher(this.params.get("q") ?? "");
    const metrics = this.session.charts.filter((metric) => (isMachine(metric) || PHASE.test(metric.name)) && matches(metric.name));
    const found = new Map<string, Source[]>();
    const phases = metrics.filter(({ name, kind }) => PHASE.test(name) && (kind === "gauge" || kind === "sum"));
    if (phases.length) found.set(PHASES, this.phases(phases));
    for (const metric of metrics.sort((a, b) => (a.name < b.name ? -1 : 1))) {
      if (phases.includes(metric)) continue;
      const [section] = SECTIONS.find(([, pattern]) => pattern.test(metric.name)) ?? ["Others"];
      found.set(section, [...(found.get(section) ?? []), this.source(metric)]);
    }
    const order = SECTIONS.map(([name]) => name);
    const sections: Section<Source>[] = [...found].map(([name, sources]) => ({ name, sources, spread: name === PHASES })).sort((a, b) => order.indexOf(a.name) - order.indexOf(b.name));
    this.grid.update(sections, route.list(this.params, "closed"));
    const chosen = this.params.get("full");
    this.full.show(sections.flatMap(({ sources }) => sources).find(({ title }) => title === chosen));
    this.empty.hidden = sections.length > 0;
    fill(
      this.empty,
      h("h2", {}, this.params.get("q") ? "Nothing has such a name" : "No statistics of the machine yet"),
      h("p", {}, "They come from the agent beside the trainer, every few seconds, unless sensors are off."),
    );
  }

  private source(metric: Chart): Source {
    const known = this.sources.get(metric.title);
    if (known) return known;
    const made = new MetricSource(
      this.session.feed,
      metric,
      () => this.look(),
      () => this.session.selected(this.params),
    );
    this.sources.set(metric.title, made);
    return made;
  }

  private phases(metrics: api.Metric[]): Source[] {
    const names = metrics.map(({ name }) => name);
    const unit = metrics[0]?.unit || "s";
    const key = names.join("\n");
    const look = () => this.look();
    const choice = () => this.choice();
    const make = (title: string, source: () => Source): Source => {
      const made = this.sources.get(`${title} ${key}`) ?? source();
      this.sources.set(`${title} ${key}`, made);
      return made;
    };
    const { session } = this;
    const stacked = make("stacked", () => stackedPhases(session.feed, names, unit, look, choice));
    const lags = this.clocks().has("lag");
    return lags ? [stacked, make("lag", () => phaseLag(session.feed, names, unit, look, choice))] : [stacked];
  }

  private choice(): PhaseChoice {
    const [run = ""] = this.session.ids;
    return {
      clock: this.params.get("clock") ?? "host",
      process: this.params.get("process"),
      processName: (process) => this.session.processName(run, process),
    };
  }

  /** By which phases were timed. */
  private clocks(): Set<string> {
    const phases = this.session.metrics.filter(({ name }) => PHASE.test(name));
    return new Set(phases.flatMap(({ attributes }) => attributes.map((one) => String(one[CLOCK] ?? "host"))));
  }

  private drawChoices(): void {
    const clocks = ["host", "device"].filter((clock) => this.clocks().has(clock));
    this.clock.show(clocks.length > 1 ? clocks.map((clock) => [clock, `${clock} time`]) : [], this.params.get("clock") ?? "host");
    const [run = ""] = this.session.ids;
    const ranked = (this.session.single?.processes ?? []).filter(({ rank }) => rank !== null).sort((a, b) => (a.rank ?? 0) - (b.rank ?? 0));
    const names = ranked.map(({ id }): [string, string] => [id, this.session.processName(run, id)]);
    this.process.show(names.length > 1 ? [["", "all"], ...names] : [], this.params.get("process") ?? "");
  }
}

/** A choice that is in the address as `name`; its first value is not. */
function select(title: string, name: string) {
  const field = h("select", { "aria-label": title, on: { change: () => route.change({ [name]: field.selectedIndex > 0 ? field.value : null }) } });
  const label = h("label", {}, `${name} `, field);
  const show = (values: [string, string][], chosen: string) => {
    label.hidden = values.length === 0;
    options(field, values);
    field.value = chosen;
  };
  return { label, show };
}
