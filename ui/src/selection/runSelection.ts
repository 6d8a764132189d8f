// The runs of a workspace with their details and points, and the metrics that have been read.

import { matchesWildcards } from "../base/wildcards";
import * as route from "../base/route";
import { lineColor } from "../base/theme";
import type { SelectedRun } from "../chart/metricSource";
import { PointCache } from "../chart/pointCache";
import * as api from "../data/api";
import { ranksOf } from "../data/attempt";
import { fieldText } from "../data/fields";
import type { Update } from "../data/live";
import { MAX_RUNS, anyOf, metrics } from "../data/metrics";
import { MetricIndex } from "./metricIndex";
import { type Folds, MetricTree } from "./metricTree";

const STEP = "tensormeter.step";
const MAX_DETAILS = 16;
/** Number of runs whose metrics are read with one request. */
const RUNS_PER_REQUEST = 25;
/** Number of metrics that panes without charts read, for the step of the run. */
const SAMPLE = 100;
/** Number of words of alerts that are looked up at once, and of their characters: the server limits the length of a search. */
const MAX_WORDS = 100;
const MAX_CHARACTERS = 800;
const MAX_REPORTED = 20_000;
/** Delay after which the first view has usually been drawn. */
const SECOND_STAGE_DELAY_MS = 600;

export class RunSelection {
  runs: api.Run[] = [];
  details = new Map<string, api.RunDetail>();
  /** Metrics of charts that have been read. */
  readonly metrics: MetricIndex;
  readonly tree: MetricTree;
  readonly cache: PointCache;
  private loading: Promise<void> | null = null;
  /** Runs with new points since their metrics were read. */
  private readonly changedRuns = new Set<string>();
  /** Names of metrics in live updates, and whether a metric with this name exists. */
  private readonly reported = new Set<string>();
  private readonly lookedUp = new Map<string, boolean>();

  /** `search` is the search for charts; undefined if the pane shows none. */
  constructor(
    readonly project: string,
    readonly ids: string[],
    private readonly search?: string,
  ) {
    this.metrics = new MetricIndex(ids.length > 1);
    this.tree = new MetricTree(project, ids, this.metrics);
    this.cache = new PointCache(
      project,
      ids,
      { x: "step", window: null },
      (metric) => this.metrics.linesPerRun(metric),
      (metric) => this.stepMetric(metric) ?? (this.metrics.isStepless(metric) ? this.clock : null),
    );
  }

  /** The default x axis: steps, or time if no logged metric has steps. */
  get axis(): string {
    return this.metrics.size === 0 || this.metrics.hasSteps ? "step" : this.clock;
  }

  /** The axis that the definitions of a script name for a metric; null if they name none. */
  private stepMetric(metric: string): string | null {
    for (const { definitions } of this.runs) {
      const defined = definitions.findLast(({ name, step_metric: axis }) => axis !== undefined && axis !== metric && matchesWildcards(name, metric));
      if (defined?.step_metric === STEP) return null;
      if (defined) return `metric:${defined.step_metric}`;
    }
    return null;
  }

  private get clock(): string {
    return this.ids.length > 1 ? "relative" : "time";
  }

  get single(): api.RunDetail | null {
    return this.ids.length === 1 ? (this.details.get(this.ids[0] as string) ?? null) : null;
  }

  /** Load the runs and the metrics for the first view. Repeated calls share one request; after an error the next call retries. */
  load(): Promise<void> {
    this.loading ??= this.read().catch((error: unknown) => {
      this.loading = null;
      throw error;
    });
    return this.loading;
  }

  private async read(): Promise<void> {
    const [first = ""] = this.ids;
    if (this.ids.length === 1) {
      const [detail] = await Promise.all([api.run(first, this.project), this.readCharts()]);
      this.setSingle(detail);
      return;
    }
    // The first view shows the charts of the first run; those of the others follow.
    this.tree.setRuns([first]);
    const readFirst = this.readCharts().then(
      () => true,
      () => false,
    );
    const [runs, isRead] = await Promise.all([api.runsById(this.project, this.ids, "config"), readFirst]);
    const byId = new Map(runs.map((run) => [run.id, run]));
    this.runs = this.ids.flatMap((id) => byId.get(id) ?? []);
    if (this.runs.length === 0) throw new api.ApiError(404, "None of these runs exists in this project.");
    this.tree.setRuns(this.runs.map(({ id }) => id).slice(0, MAX_RUNS));
    if (!isRead) await this.readCharts();
  }

  private async readCharts(): Promise<void> {
    if (this.search !== undefined) await this.tree.load(this.search);
    else if (this.ids.length === 1) this.metrics.add((await metrics(this.project, this.ids, { pane: "charts", limit: SAMPLE })).metrics);
  }

  /** Load the metrics and details that the first view does not need. */
  async loadMore(folds: Folds, onMore: () => void): Promise<void> {
    if (this.ids.length === 1) return;
    // Names of processes are needed only for runs with several.
    const multiProcess = this.runs.filter(({ processes }) => processes > 1).slice(0, MAX_DETAILS).map(({ id }) => id);
    const others = this.runs.slice(1).map(({ id }) => id);
    const readMetrics = async () => {
      if (this.search === undefined) return;
      for (let i = 0; i < others.length && this.tree.isComplete; i += RUNS_PER_REQUEST) await this.tree.refresh(folds, others.slice(i, i + RUNS_PER_REQUEST));
      if (!this.tree.isComplete) await this.tree.refresh(folds);
    };
    const readDetails = async () => {
      for (const id of multiProcess) this.details.set(id, await api.run(id, this.project));
    };
    const before = this.tree.version;
    await new Promise((resolve) => setTimeout(resolve, SECOND_STAGE_DELAY_MS));
    await this.cache.idle();
    await Promise.allSettled([readMetrics(), readDetails()]);
    if (this.tree.version !== before || this.details.size > 0) onMore();
  }

  /** Apply a live update. Returns whether it has a new metric or state, which is a reason to reload soon. */
  applyUpdate({ run: id, metrics, many, state, events }: Update): boolean {
    const run = this.runs.find((candidate) => candidate.id === id);
    if (!run) return false;
    const hasPoints = many === true || metrics.length > 0;
    if (hasPoints || events) run.last_time = String(Date.now() * 1e6);
    const stateChanged = state !== undefined && state !== run.state;
    if (state) run.state = state;
    if (hasPoints) this.changedRuns.add(id);
    // Of many metrics, most have not been read, so an unknown name does not mean a new metric.
    return stateChanged || (this.tree.isComplete && metrics.filter((name) => this.isNew(name)).length > 0);
  }

  /** Whether a name was neither read nor reported before. Metrics of other panes are new only once. */
  private isNew(name: string): boolean {
    if (this.metrics.named(name).length > 0 || this.reported.has(name)) return false;
    if (this.reported.size >= MAX_REPORTED) this.reported.clear();
    this.reported.add(name);
    return true;
  }

  /** Reload changed runs: new metrics, processes, losses. Returns whether there are new metrics. */
  async reload(folds: Folds): Promise<boolean> {
    const [first = ""] = this.ids;
    const showsCharts = this.search !== undefined;
    if (this.ids.length === 1) {
      this.setSingle(await api.run(first, this.project));
      if (showsCharts) return this.tree.refresh(folds);
      await this.readCharts();
      return false;
    }
    const changedRuns = [...this.changedRuns].slice(0, MAX_RUNS);
    for (const id of changedRuns) this.changedRuns.delete(id);
    try {
      const now = new Map((await api.runsById(this.project, this.ids, "")).map((run) => [run.id, run]));
      for (const run of this.runs) {
        const { state, lost, lag } = now.get(run.id) ?? run;
        Object.assign(run, { state, lost, lag });
      }
      return showsCharts && changedRuns.length > 0 ? await this.tree.refresh(folds, changedRuns) : false;
    } catch (error) {
      for (const id of changedRuns) this.changedRuns.add(id);
      throw error;
    }
  }

  /** The first of these words that is the name of a metric, as far as `lookUp` has found out. */
  findMetric(words: string[]): string | undefined {
    return words.find((word) => this.metrics.named(word).length > 0 || this.lookedUp.get(word));
  }

  /** Find out which of these words are names of metrics. Returns whether any is. */
  async lookUp(words: string[]): Promise<boolean> {
    let room = MAX_CHARACTERS;
    const isUnknown = (word: string) => word !== "" && word.length <= MAX_CHARACTERS / 4 && !this.lookedUp.has(word) && this.metrics.named(word).length === 0;
    const unknown = [...new Set(words)].filter((word) => isUnknown(word) && (room -= anyOf([word]).length) > 0).slice(0, MAX_WORDS);
    if (unknown.length === 0) return false;
    for (const word of unknown) this.lookedUp.set(word, false);
    try {
      const page = await metrics(this.project, this.ids, { search: anyOf(unknown), limit: MAX_WORDS });
      for (const { name } of page.metrics) if (this.lookedUp.has(name)) this.lookedUp.set(name, true);
    } catch {
      for (const word of unknown) this.lookedUp.delete(word);
    }
    return unknown.some((word) => this.lookedUp.get(word));
  }

  selectedRuns(params: URLSearchParams): SelectedRun[] {
    const colors = colorsFrom(params);
    const groupBy = params.get("group");
    const groups = new Map<string, number>();
    const nameCounts = new Map<string, number>();
    for (const { name } of this.runs) nameCounts.set(name, (nameCounts.get(name) ?? 0) + 1);
    return this.runs.map((run, index) => {
      const group = groupBy && this.runs.length > 1 ? fieldText(run, groupBy) : null;
      if (group !== null && !groups.has(group)) groups.set(group, groups.size);
      const colorIndex = group === null ? index : (groups.get(group) as number);
      return {
        id: run.id,
        // Names must be unique, because they label the lines.
        name: !run.name ? run.id : nameCounts.get(run.name) === 1 ? run.name : `${run.name} (${run.id})`,
        color: (group === null ? colors.get(run.id) : undefined) ?? lineColor(colorIndex),
        group: group === null ? null : `${groupBy?.replace(/^config\./, "")} = ${group}`,
        processes: run.processes,
        processName: (process) => this.processName(run.id, process),
        firstProcess: () => this.firstProcess(run.id),
      };
    });
  }

  processName(run: string, id: string): string {
    const process = this.details.get(run)?.processes.find((candidate) => candidate.id === id);
    if (!process) return id;
    const { rank, host } = process;
    if (rank === null) return host ? `${host} ${id}` : id;
    return host ? `rank ${rank} (${host})` : `rank ${rank}`;
  }

  private firstProcess(run: string): string | null {
    const ranked = this.details.get(run)?.processes.filter(({ rank }) => rank !== null) ?? [];
    // Processes of the latest attempt come first: lines have their id.
    return ranked.sort((a, b) => (a.rank as number) - (b.rank as number) || b.attempt - a.attempt)[0]?.id ?? null;
  }

  private setSingle(detail: api.RunDetail): void {
    this.details.set(detail.id, detail);
    this.runs = [{ ...detail, processes: ranksOf(detail).length }];
  }
}

/** Colours chosen by the user, from the address: id~hex. */
export function colorsFrom(params: URLSearchParams): Map<string, string> {
  const pairs = route.list(params, "colors").map((pair) => pair.split("~") as [string, string]);
  return new Map(pairs.filter(([, hex]) => /^[0-9a-f]{6}$/.test(hex ?? "")).map(([id, hex]) => [id, `#${hex}`]));
}
