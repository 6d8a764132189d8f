// The runs of a workspace with their metrics, details and points.

import * as route from "../base/route";
import { lineColor } from "../base/theme";
import type { SelectedRun } from "../chart/metricSource";
import { PointCache } from "../chart/pointCache";
import { type Chart, metricKey, withTitles } from "../chart/variant";
import * as api from "../data/api";
import { fieldText } from "../data/fields";
import type { Update } from "../data/live";
import { trainingCharts } from "./metricSections";

const MAX_DETAILS = 16;
/** Number of runs whose metrics are read with one request. */
const RUNS_PER_REQUEST = 25;
/** Number of runs that the server accepts in one request. */
const MAX_RUNS = 200;
/** Delay after which the first view has usually been drawn. */
const SECOND_STAGE_DELAY_MS = 600;

export class RunSelection {
  runs: api.Run[] = [];
  details = new Map<string, api.RunDetail>();
  metrics: api.Metric[] = [];
  readonly cache: PointCache;
  private loading: Promise<void> | null = null;
  /** Runs with new points since their metrics were read. */
  private readonly changedRuns = new Set<string>();

  constructor(
    readonly project: string,
    readonly ids: string[],
  ) {
    this.cache = new PointCache(
      project,
      ids,
      { x: "step", window: null },
      (metric) => this.linesPerRun(metric),
      (metric) => this.axisWithoutSteps(metric),
    );
  }

  /** The charts of the metrics. */
  get charts(): Chart[] {
    return withTitles(this.metrics);
  }

  /** The default x axis: steps, or time if no logged metric has steps. */
  get axis(): string {
    const logged = trainingCharts(this.metrics, "");
    return logged.length === 0 || logged.some(({ stepped }) => stepped) ? "step" : this.clock;
  }

  private get clock(): string {
    return this.ids.length > 1 ? "relative" : "time";
  }

  private axisWithoutSteps(metric: string): string | null {
    const matches = this.metrics.filter(({ name, points }) => name === metric && points > 0);
    return matches.length > 0 && matches.every(({ stepped }) => !stepped) ? this.clock : null;
  }

  /** Upper bound of the number of lines: each process may have each set of attributes. */
  private linesPerRun(metric: string): number {
    const matches = this.metrics.filter(({ name }) => name === metric);
    return matches.reduce((sum, { processes, attributes }) => sum + processes * Math.max(1, attributes.length), 0) || 1;
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
      const [detail, metrics] = await Promise.all([api.run(first, this.project), api.metrics(first, this.project)]);
      this.setSingle(detail);
      this.metrics = metrics;
      return;
    }
    const [runs, metrics] = await Promise.all([
      this.listRuns("config"),
      api.metrics(first, this.project).catch(() => []),
    ]);
    const byId = new Map(runs.map((run) => [run.id, run]));
    this.runs = this.ids.flatMap((id) => byId.get(id) ?? []);
    if (this.runs.length === 0) throw new api.ApiError(404, "not_found", "None of these runs exists in this project.");
    this.metrics = metrics;
  }

  private async listRuns(fields: string): Promise<api.Run[]> {
    const ids = this.ids.map((id) => JSON.stringify(id)).join(", ");
    const filter = `id in (${ids}) and archived in (true, false)`;
    return (await api.runs({ project: this.project, filter, limit: 1000, fields })).runs;
  }

  /** Load the metrics and details that the first view does not need. */
  async loadMore(onMore: () => void): Promise<void> {
    if (this.ids.length === 1) return;
    // Names of processes are needed only for runs with several.
    const multiProcess = this.runs.filter(({ processes }) => processes > 1).slice(0, MAX_DETAILS).map(({ id }) => id);
    const others = this.runs.slice(1).map(({ id }) => id);
    const readMetrics = async () => {
      for (let i = 0; i < others.length; i += RUNS_PER_REQUEST) this.mergeMetrics(await api.metricsOf(others.slice(i, i + RUNS_PER_REQUEST), this.project));
    };
    const readDetails = async () => {
      for (const id of multiProcess) this.details.set(id, await api.run(id, this.project));
    };
    const before = this.metrics.length;
    await new Promise((resolve) => setTimeout(resolve, SECOND_STAGE_DELAY_MS));
    await this.cache.idle();
    await Promise.allSettled([readMetrics(), readDetails()]);
    if (this.metrics.length !== before || this.details.size > 0) onMore();
  }

  /** Apply a live update. Returns whether it has a new metric or state, which is a reason to reload soon. */
  applyUpdate({ run: id, metrics, state, events }: Update): boolean {
    const run = this.runs.find((candidate) => candidate.id === id);
    if (!run) return false;
    if (metrics?.length || events) run.last_time = String(Date.now() * 1e6);
    const stateChanged = state !== undefined && state !== run.state;
    if (state) run.state = state;
    if (metrics?.length) this.changedRuns.add(id);
    const names = new Set(this.metrics.map(({ name }) => name));
    return stateChanged || (metrics?.some((name) => !names.has(name)) ?? false);
  }

  /** Reload changed runs: new metrics, processes, losses. Returns whether there are new metrics. */
  async reload(): Promise<boolean> {
    const before = this.metrics.length;
    const [first = ""] = this.ids;
    if (this.ids.length === 1) {
      this.setSingle(await api.run(first, this.project));
      this.mergeMetrics(await api.metrics(first, this.project));
      return this.metrics.length !== before;
    }
    const changedRuns = [...this.changedRuns].slice(0, MAX_RUNS);
    for (const id of changedRuns) this.changedRuns.delete(id);
    try {
      const now = new Map((await this.listRuns("")).map((run) => [run.id, run]));
      for (const run of this.runs) {
        const { state, lost, lag } = now.get(run.id) ?? run;
        Object.assign(run, { state, lost, lag });
      }
      if (changedRuns.length) this.mergeMetrics(await api.metricsOf(changedRuns, this.project));
    } catch (error) {
      for (const id of changedRuns) this.changedRuns.add(id);
      throw error;
    }
    return this.metrics.length !== before;
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
    this.runs = [{ ...detail, processes: detail.processes.length }];
  }

  private mergeMetrics(metrics: api.Metric[]): void {
    const byKey = new Map(this.metrics.map((metric) => [metricKey(metric), metric]));
    const several = this.ids.length > 1;
    for (const metric of metrics) {
      const existing = byKey.get(metricKey(metric));
      if (!existing) this.metrics.push(metric);
      else if (several) {
        const { points, last_step, last_time } = metric;
        const newer = Number(last_time ?? 0) > Number(existing.last_time ?? 0) ? { last_step, last_time } : {};
        const processes = Math.max(metric.processes, existing.processes);
        const attributes = union(existing.attributes, metric.attributes);
        const scopes = union(existing.scopes, metric.scopes);
        Object.assign(existing, { ...newer, processes, attributes, scopes, points: Math.max(points, existing.points), stepped: existing.stepped || metric.stepped });
      }
      else Object.assign(existing, metric);
    }
  }
}

function union<T>(left: T[], right: T[]): T[] {
  return [...new Map([...left, ...right].map((item) => [JSON.stringify(item), item])).values()];
}

/** Colours chosen by the user, from the address: id~hex. */
export function colorsFrom(params: URLSearchParams): Map<string, string> {
  const pairs = route.list(params, "colors").map((pair) => pair.split("~") as [string, string]);
  return new Map(pairs.filter(([, hex]) => /^[0-9a-f]{6}$/.test(hex ?? "")).map(([id, hex]) => [id, `#${hex}`]));
}
