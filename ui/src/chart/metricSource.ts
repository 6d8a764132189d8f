// The curves of one metric for the selected runs: lines, means of groups, or statistics over ranks.

import * as format from "../base/format";
import { remember } from "../base/remember";
import { lineColor } from "../base/theme";
import * as api from "../data/api";
import type { ChartMark } from "./chartMarks";
import { type ChartOptions, usesRankStatistics, xKind } from "./chartOptions";
import { type Band, type Curve, aggregate, smooth } from "./curve";
import { outlierRank } from "./outlierRank";
import type { Trace, ChartView } from "./plot";
import type { PointCache } from "./pointCache";
import { type Chart, belongs } from "./variant";

export interface SelectedRun {
  id: string;
  name: string;
  color: string;
  /** Name of the group, which is drawn as mean and range; null draws the run itself. */
  group: string | null;
  processes: number;
  /** Name of a process, for example "rank 3 on node1". */
  processName: (process: string) => string;
  firstProcess: () => string | null;
}

/** Number of runs up to which the server computes statistics over ranks, with one request per run. */
const MAX_RANKED_RUNS = 12;
/** Maximum number of lines that the server returns in one response. */
const MAX_SERVER_LINES = 2000;
const LINES_MS = 150;
const STATISTICS_MS = 3000;
const SHARE_NAMES = /\.utilization$|\.share$/;

export class MetricSource {
  remark = "";
  warns = true;
  refreshMs = LINES_MS;
  /** Runs that were checked for points without steps, and the number of those that have some. */
  private remarkedRuns = "";
  private stepless = Promise.resolve(0);

  constructor(
    private readonly cache: PointCache,
    readonly metric: Chart,
    private readonly options: () => ChartOptions,
    private readonly selected: () => SelectedRun[],
    private readonly marks: (axis: string) => ChartMark[] = () => [],
  ) {}

  get title(): string {
    return this.metric.title;
  }

  get unit(): string {
    const { name, unit } = this.metric;
    return unit === "1" && SHARE_NAMES.test(name) ? format.SHARE : unit;
  }

  get description(): string {
    const { name, kind, unit, description, scopes } = this.metric;
    const from = scopes.filter(Boolean).join(", ");
    return [name, description, `${kind}${unit ? `, ${unit}` : ""}`, from && `recorded by ${from}`].filter(Boolean).join("\n");
  }

  subscribe(listener: () => void): () => void {
    return this.cache.subscribe(this.metric.name, listener);
  }

  async read(): Promise<ChartView> {
    const axis = this.cache.axis(this.metric.name);
    const options = { ...this.options(), x: axis, window: this.cache.window(this.metric.name) };
    const runs = this.selected().filter(({ id }) => !options.hidden.has(id));
    this.remark = "";
    // Statistics over ranks take one request per run. For many runs they are computed here, from lines, if there are few enough.
    const ranked = usesRankStatistics(this.metric, options);
    const served = ranked && (runs.length <= MAX_RANKED_RUNS || this.cache.lineCount(this.metric.name) > MAX_SERVER_LINES);
    // Updates of lines contain new points only; statistics are sent in full.
    this.refreshMs = served ? STATISTICS_MS : LINES_MS;
    this.warns = served;
    const traces = served ? await this.readRankStatistics(runs, options) : await this.readLines(runs, options, ranked);
    const hint = traces.every(({ x }) => x.length === 0) ? this.hint(axis) : null;
    if (!hint && axis === "step" && !served) await this.remarkOnRuns(runs);
    // Charts without a remark use the axis that the controls show.
    const own = axis.startsWith("metric:") && axis !== this.options().x ? `x: ${axis.slice("metric:".length)}` : "";
    if (!this.remark.startsWith(own)) this.remark = [own, this.remark].filter(Boolean).join(" · "); // another read may have added it
    return {
      traces,
      ...(hint ? { hint } : {}),
      x: axis,
      xKind: xKind(options.x),
      xLabel: options.x.replace(/^metric:/, ""),
      xLog: options.xLog && options.x !== "time",
      yLog: options.yLog,
      unit: this.unit,
      window: options.window,
      clip: options.clip,
      grouped: runs.some(({ group }) => group !== null),
      marks: this.marks(axis),
    };
  }

  /** Explain why no points are shown, although there are some. */
  private hint(axis: string): ChartView["hint"] | null {
    const { points } = this.metric;
    if (points === 0) return null;
    const words = `${format.count(points)} ${points === 1 ? "point" : "points"}`;
    if (axis === "step") return { text: `${words} without a step.`, x: this.cache.runs.length > 1 ? "relative" : "time" };
    return axis.startsWith("metric:") ? { text: `${words}, none with a value of ${axis.slice(7)} at or before its step.` } : null;
  }

  /** Remark on runs that have points, but none with a step. */
  private async remarkOnRuns(runs: SelectedRun[]): Promise<void> {
    const lines = await this.cache.load(this.metric.name);
    const withLines = new Set(lines.map(({ run }) => run));
    const missing = runs.filter(({ id }) => !withLines.has(id)).map(({ id }) => id);
    if (missing.length === 0) return;
    const key = missing.join("\n");
    if (key !== this.remarkedRuns) {
      this.remarkedRuns = key;
      this.stepless = runsWithPoints(this.cache.project, missing, this.metric.name).catch(() => 0);
    }
    const stepless = await this.stepless;
    if (stepless === 0) return;
    const words = `${stepless === 1 ? "1 run has" : `${stepless} runs have`} points without a step; set x to time to see them`;
    this.remark = [this.remark, words].filter(Boolean).join(" · ");
  }

  private async readLines(runs: SelectedRun[], options: ChartOptions, ranked: boolean): Promise<Trace[]> {
    const lines = (await this.cache.load(this.metric.name)).filter((line) => belongs(line, this.metric));
    const groups = new Map<string, { color: string; lines: api.Line[] }>();
    const rankGroups = new Groups();
    const traces: Trace[] = [];
    if (ranked) this.remark = "mean and range of each run's ranks";
    for (const run of runs) {
      let runLines = lines.filter((line) => line.run === run.id && !line.child);
      if (run.group === null) traces.push(...parentTraces(run, lines, options));
      const first = options.ranks === "first" && runLines.length > 1 ? run.firstProcess() : null;
      if (first !== null) runLines = runLines.filter((line) => line.process === first);
      if (options.process && runLines.some((line) => line.process === options.process)) runLines = runLines.filter((line) => line.process === options.process);
      if (ranked && (runLines.length > 1 || run.group !== null)) {
        const band = aggregate(runLines);
        const note = `mean of ${runLines.length} ranks`;
        if (run.group !== null) rankGroups.add(run.group, run.color, band, runLines.length);
        else traces.push(bandTrace(run.name, run.color, band, options.smoothing, () => note));
        continue;
      }
      if (run.group !== null) {
        remember(groups, run.group, () => ({ color: run.color, lines: [] })).lines.push(...runLines);
        continue;
      }
      const several = runLines.length > 1;
      const attempts = new Set(runLines.map(({ attempt }) => attempt));
      for (const line of runLines) {
        const labelParts = [
          runs.length > 1 ? run.name : "",
          attempts.size > 1 ? `attempt ${line.attempt}` : "",
          several && run.processes > 1 ? run.processName(line.process) : "",
          several && this.metric.scopes.length > 1 ? line.scope : "",
          ...Object.values(line.attributes).map(String),
        ];
        const singleRun = runs.length === 1 && several;
        traces.push({
          ...curves(line, options.smoothing),
          label: labelParts.filter(Boolean).join(" · ") || run.name,
          color: singleRun ? lineColor(traces.length) : run.color,
          sampled: line.total > line.x.length,
          thin: several && !singleRun,
        });
      }
    }
    for (const [name, group] of groups) {
      const note = `mean of ${group.lines.length}`;
      traces.push(bandTrace(name, group.color, aggregate(group.lines), options.smoothing, () => note));
    }
    return [...traces, ...rankGroups.traces("means", options.smoothing)];
  }

  private async readRankStatistics(runs: SelectedRun[], options: ChartOptions): Promise<Trace[]> {
    const { project } = this.cache;
    const { name, unit, kind, temporality, scopes } = this.metric;
    const scope = scopes.length === 1 ? { scope: scopes[0] as string } : {};
    const answers = await Promise.all(
      runs.map((run) =>
        api.ranks(run.id, { project, metric: name, unit, kind, temporality, ...scope, x: options.x, max_points: 400, ...range(options) }),
      ),
    );
    const traces: Trace[] = [];
    const groups = new Groups();
    for (const [position, run] of runs.entries()) {
      const ranks = answers[position] as api.Ranks;
      const column = (values: api.JsonNumber[]) => Float64Array.from(values, api.toNumber);
      const band: Band = { x: column(ranks.x), low: column(ranks.min), middle: column(ranks.median), high: column(ranks.max) };
      if (band.x.length === 0) continue;
      if (run.group !== null) {
        groups.add(run.group, run.color, band, ranks.processes);
        continue;
      }
      const nameOf = (process: string | undefined) => (process === undefined ? "?" : run.processName(process));
      const label = runs.length > 1 ? run.name : `median of ${ranks.processes} ranks`;
      const note = (i: number) => `highest ${nameOf(ranks.highest[i])}, lowest ${nameOf(ranks.lowest[i])}`;
      traces.push(bandTrace(label, run.color, band, options.smoothing, note));
      if (runs.length === 1) this.remark = outlierRank(ranks, nameOf);
    }
    return [...traces, ...groups.traces("medians", options.smoothing)];
  }
}

/** The part of the curve of a run's parent, up to the fork. */
function parentTraces(run: SelectedRun, lines: api.Line[], options: ChartOptions): Trace[] {
  return lines
    .filter(({ child }) => child === run.id)
    .map((line) => ({
      ...curves(line, options.smoothing),
      label: [`${run.name}: parent ${line.run}`, ...Object.values(line.attributes).map(String)].join(" · "),
      color: run.color,
      sampled: line.total > line.x.length,
      thin: true,
      dashed: true,
    }));
}

/** Count the runs that have points of a metric. */
async function runsWithPoints(project: string, ids: string[], metric: string): Promise<number> {
  const runs = await api.runsById(project, ids, `summary.${metric}`);
  return runs.filter(({ summary }) => (summary[metric]?.count ?? 0) > 0).length;
}

/** Groups of runs, each with a band over its ranks. */
class Groups {
  private readonly groups = new Map<string, { color: string; bands: Band[]; ranks: number }>();

  add(name: string, color: string, band: Band, ranks: number): void {
    const group = remember(this.groups, name, () => ({ color, bands: [], ranks: 0 }));
    group.bands.push(band);
    group.ranks += ranks;
  }

  traces(middles: string, smoothing: number): Trace[] {
    return [...this.groups].map(([label, { color, bands, ranks }]) => {
      const note = `mean of the ${middles} of ${format.counted(bands.length, "run")}, ${ranks} ranks`;
      return bandTrace(label, color, combineBands(bands), smoothing, () => note);
    });
  }
}

/** Combine bands: the mean of their middles, and their lowest and highest edges. */
function combineBands(bands: Band[]): Band {
  const part = (name: "low" | "middle" | "high") => aggregate(bands.map((band) => ({ x: band.x, y: band[name], gaps: band.gaps })));
  const { x, middle, gaps } = part("middle");
  return { x, low: part("low").low, middle, high: part("high").high, gaps };
}

/** The curve through the middle of a band, with the band around it. */
function bandTrace(label: string, color: string, band: Band, smoothing: number, note: (index: number) => string): Trace {
  return { ...curves({ x: band.x, y: band.middle, gaps: band.gaps }, smoothing), label, color, band, note };
}

function curves({ x, y, gaps }: Curve, smoothing: number): Pick<Trace, "x" | "y" | "gaps" | "raw"> {
  if (smoothing <= 0) return { x, y, gaps };
  return { x, y: smooth({ x, y }, smoothing), gaps, raw: { x, y, gaps } };
}

/** The range to request. Steps are integers. */
function range({ x, window }: ChartOptions): { start?: number; stop?: number } {
  if (!window) return {};
  const [start, stop] = window;
  return x === "step" ? { start: Math.floor(start), stop: Math.ceil(stop) } : { start, stop };
}
