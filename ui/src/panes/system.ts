// System metrics: GPUs by node, host, process, phases of a step, and the cost of logging.

import { fill, h, setOptions } from "../base/dom";
import * as format from "../base/format";
import { remember } from "../base/remember";
import * as route from "../base/route";
import type { ChartSource } from "../chart/chartCard";
import { type ChartOptions, readChartOptions } from "../chart/chartOptions";
import { MetricSource } from "../chart/metricSource";
import { CLOCK, PHASE, type PhaseChoice, type Phases, phaseLag, stackedPhases } from "../chart/phaseChart";
import type { Chart } from "../chart/variant";
import { SYSTEM_METRIC } from "../data/fields";
import type { Update } from "../data/live";
import { metrics } from "../data/metrics";
import { ChartControls } from "../selection/chartControls";
import { ChartSections, type Section } from "../selection/chartSections";
import { FullScreen } from "../selection/fullscreen";
import { GpuGrid } from "../selection/gpuGrid";
import { MetricIndex } from "../selection/metricIndex";
import { byName, matcher } from "../selection/metricSections";
import type { RunSelection } from "../selection/runSelection";
import { zoom } from "./charts";
import type { Pane } from "./pane";

const PHASES = "Phases of a step";
/** Sections in order. A metric belongs to the first one that matches its name. */
const SECTIONS: [string, RegExp][] = [
  [PHASES, /phase|^tensormeter\.(step\.|throughput)/],
  ["GPU", /^hw\.|^tensormeter\.gpu/],
  ["Process", /^process\.|^cpython\.|^gc\./],
  ["Host", /^system\.|^container\.|^k8s\./],
  ["Logging", /^tensormeter\./],
  ["Other", /./],
];
/** Number of metrics that the pane shows at most. */
const MAX_METRICS = 1000;
const NO_CHARTS = new Set(["histogram", "exponential_histogram", "summary"]);
/** Number of processes up to which a chart shows each of them by default; above, their median and range. */
const EACH = 8;

export class SystemPane implements Pane {
  readonly element: HTMLElement;
  private params = new URLSearchParams();
  private readonly controls: ChartControls;
  private readonly clock = select("Clock of phases", "clock");
  private readonly process = select("Process", "process");
  private readonly grid: ChartSections;
  private readonly gpuGrid: GpuGrid;
  private readonly full = new FullScreen({ zoom: (window) => zoom(window) });
  private readonly empty = h("div", { class: "state", hidden: true });
  private readonly sources = new Map<string, ChartSource>();
  private readonly metrics = new MetricIndex(false);
  private names = new Set<string>();
  private problem = "";
  private isRead = false;
  /** Whether a live update named a metric that was not read. */
  private hasNew = false;

  constructor(private readonly selection: RunSelection) {
    this.controls = new ChartControls(selection);
    this.controls.element.append(this.clock.label, this.process.label);
    this.gpuGrid = new GpuGrid(selection);
    const full = (title: string) => route.change({ full: title });
    this.grid = new ChartSections({ zoom: (window) => zoom(window), full }, (closed) => route.change({ closed: route.join(closed) }));
    this.element = h("div", { class: "pane" }, h("div", { class: "content" }, this.controls.element, this.gpuGrid.element, this.empty, this.grid.element), this.full.element);
    void this.read();
  }

  /** Read the metrics of the system, and those of phases, which scripts may log under other names. */
  private async read(): Promise<void> {
    const { project, ids } = this.selection;
    const list = (query: object) => metrics(project, ids, { limit: MAX_METRICS, ...query });
    try {
      const [system, phases] = await Promise.all([list({ pane: "system" }), list({ pane: "charts", search: PHASE.source })]);
      // The server ignores case. The cache of points uses the numbers of lines.
      this.selection.metrics.add(this.metrics.add([...system.metrics, ...phases.metrics.filter(({ name }) => PHASE.test(name))]));
      this.problem = "";
    } catch (error) {
      this.problem = format.message(error);
    }
    this.isRead = true;
    this.names = new Set([...this.metrics].map(({ name }) => name));
    this.apply(this.params);
  }

  /** Options of the charts. System metrics use relative time by default. */
  private options(): ChartOptions {
    const options = readChartOptions(this.params, "relative");
    const many = [...this.metrics].some(({ processes }) => processes > EACH);
    const ranks = this.params.has("ranks") || many ? options.ranks : "each";
    return { ...options, ranks, process: this.params.get("process") };
  }

  apply(params: URLSearchParams): void {
    this.params = params;
    const options = this.options();
    this.selection.cache.setAxis({ x: options.x, explicitAxis: true, window: options.window });
    this.controls.update(params, "relative");
    this.controls.setRanks(options.ranks);
    this.drawChoices();
    this.draw();
    this.grid.refresh();
    this.full.refresh();
  }

  onUpdate(update: Update): void {
    if (update.many || update.metrics?.some((name) => name.startsWith("hw."))) this.gpuGrid.scheduleRead();
    if (update.metrics?.some((name) => SYSTEM_METRIC.test(name) && name !== "tensormeter.step" && !this.names.has(name))) this.hasNew = true;
  }

  onReload(): void {
    if (this.hasNew) void this.read();
    this.hasNew = false;
  }

  onKey(event: KeyboardEvent): void {
    if (event.key === "0") zoom(null);
  }

  close(): void {
    this.full.close();
    this.gpuGrid.close();
    this.grid.close();
  }

  private draw(): void {
    const matches = matcher(this.params.get("q") ?? "");
    const metrics = [...this.metrics].filter(({ name, kind }) => !NO_CHARTS.has(kind) && name !== "tensormeter.step" && matches(name));
    const phases = metrics.filter(({ name, kind }) => PHASE.test(name) && (kind === "gauge" || kind === "sum"));
    const others = metrics.filter((metric) => !phases.includes(metric)).sort(byName);
    const bySection = Map.groupBy(others, ({ name }) => SECTIONS.find(([, pattern]) => pattern.test(name)));
    const sections = SECTIONS.map((section): Section => {
      const [name] = section;
      const sources = (bySection.get(section) ?? []).map((metric) => this.source(metric));
      return name === PHASES ? { name, sources: [...this.phases(phases), ...sources], spread: true } : { name, sources };
    }).filter(({ sources }) => sources.length > 0);
    this.grid.update(sections, route.list(this.params, "closed"));
    const title = this.params.get("full");
    this.full.show(sections.flatMap(({ sources }) => sources).find((source) => source.title === title));
    this.empty.hidden = sections.length > 0;
    if (!this.isRead || this.problem) fill(this.empty, h("p", { role: "status" }, this.problem || "Loading …"));
    else fill(
      this.empty,
      h("h2", {}, this.params.get("q") ? "No matching metrics" : "No system metrics yet"),
      h("p", {}, "The agent on the training node sends them every few seconds, unless sensors are disabled."),
    );
  }

  private source(metric: Chart): ChartSource {
    const make = () => new MetricSource(this.selection.cache, metric, () => this.options(), () => this.selection.selectedRuns(this.params));
    return remember(this.sources, metric.title, make);
  }

  private phases(metrics: Chart[]): ChartSource[] {
    if (metrics.length === 0) return [];
    const names = metrics.map(({ name }) => name);
    const unit = metrics[0]?.unit || "s";
    const phases: Phases = { cache: this.selection.cache, metrics: names, unit, options: () => this.options(), choice: () => this.choice() };
    const charts = { stacked: stackedPhases, ...(this.clocks().has("lag") ? { lag: phaseLag } : {}) };
    return Object.entries(charts).map(([kind, make]) => remember(this.sources, `${kind} ${names.join("\n")}`, () => make(phases)));
  }

  private choice(): PhaseChoice {
    const [run = ""] = this.selection.ids;
    return {
      clock: this.params.get("clock") ?? "host",
      process: this.params.get("process"),
      processName: (process) => this.selection.processName(run, process),
    };
  }

  /** Clocks that timed the phases. */
  private clocks(): Set<string> {
    const phases = [...this.metrics].filter(({ name }) => PHASE.test(name));
    return new Set(phases.flatMap(({ attributes }) => attributes.map((set) => String(set[CLOCK] ?? "host"))));
  }

  private drawChoices(): void {
    const clocks = ["host", "device"].filter((clock) => this.clocks().has(clock));
    this.clock.show(clocks.length > 1 ? clocks.map((clock) => [clock, `${clock} time`]) : [], this.params.get("clock") ?? "host");
    const [run = ""] = this.selection.ids;
    const ranked = (this.selection.single?.processes ?? []).filter(({ rank }) => rank !== null).sort((a, b) => (a.rank ?? 0) - (b.rank ?? 0));
    const names = ranked.map(({ id }): [string, string] => [id, this.selection.processName(run, id)]);
    this.process.show(names.length > 1 ? [["", "all"], ...names] : [], this.params.get("process") ?? "");
  }
}

/** Create a select whose value is the parameter `name`. The first value is the default, which is not in the address. */
function select(title: string, name: string) {
  const field = h("select", { "aria-label": title, on: { change: () => route.change({ [name]: field.selectedIndex > 0 ? field.value : null }) } });
  const label = h("label", {}, `${name} `, field);
  const show = (values: [string, string][], selected: string) => {
    label.hidden = values.length === 0;
    setOptions(field, values);
    field.value = selected;
  };
  return { label, show };
}
