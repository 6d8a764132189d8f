// What a metric of the selected runs looks like: lines, means of groups, or statistics over ranks.

import * as format from "../base/format";
import * as api from "../data/api";
import { type Look, acrossRanks, xKind } from "./chartOptions";
import { type Band, type Curve, aggregate, smooth } from "./curve";
import type { Trace, View } from "./plot";
import type { Feed } from "./pointCache";
import { type Chart, belongs } from "./variant";

export interface Selected {
  id: string;
  name: string;
  color: string;
  /** Runs of one group are drawn as their mean and range; null draws the run itself. */
  group: string | null;
  processes: number;
  /** Names of processes, such as "rank 3 on node1". */
  processName: (process: string) => string;
  firstProcess: () => string | null;
}

/** Runs beyond which statistics over the ranks of each would be too many questions. */
const MOST_RANKED = 12;
/** Lines that the server gives for one question, at most. */
const MOST_LINES = 2000;
const LINES_MS = 250;
const STATISTICS_MS = 3000;
const SHARES = /\.utilization$|\.share$/;

export class MetricSource {
  remarkText = "";
  warns = true;
  pace = LINES_MS;
  /** Runs that were asked about, and how many of them have points. */
  private asked = "";
  private stepless = Promise.resolve(0);

  constructor(
    private readonly feed: Feed,
    readonly metric: Chart,
    private readonly look: () => Look,
    private readonly selected: () => Selected[],
  ) {}

  get title(): string {
    return this.metric.title;
  }

  get unit(): string {
    const { name, unit } = this.metric;
    return unit === "1" && SHARES.test(name) ? format.SHARE : unit;
  }

  get description(): string {
    const { name, kind, unit, description, scopes } = this.metric;
    const from = scopes.filter(Boolean).join(", ");
    return [name, description, `${kind}${unit ? `, ${unit}` : ""}`, from && `recorded by ${from}`].filter(Boolean).join("\n");
  }

  on(listener: () => void): () => void {
    return this.feed.on(this.metric.name, listener);
  }

  remark(): string {
    return this.remarkText;
  }

  async read(): Promise<View> {
    const axis = this.feed.axis(this.metric.name);
    const look = { ...this.look(), x: axis, window: this.feed.window(this.metric.name) };
    const runs = this.selected().filter(({ id }) => !look.hidden.has(id));
    this.remarkText = "";
    // The server's statistics over ranks take a request for each run; those of many runs are made here, of the lines, if it gives them.
    const ranked = acrossRanks(this.metric, look);
    const served = ranked && (runs.length <= MOST_RANKED || this.feed.lines(this.metric.name) > MOST_LINES);
    // Lines grow by what is new; of the server's statistics all are sent again.
    this.pace = served ? STATISTICS_MS : LINES_MS;
    this.warns = served;
    const traces = served ? await this.overRanks(runs, look) : await this.lines(runs, look, ranked);
    const hint = traces.every(({ x }) => x.length === 0) ? this.hint(axis) : null;
    if (!hint && axis === "step" && !served) await this.remarkOnRuns(runs);
    return {
      traces,
      ...(hint ? { hint } : {}),
      x: axis,
      xKind: xKind(look.x),
      xLabel: look.x.replace(/^metric:/, ""),
      xLog: look.xLog && look.x !== "time",
      yLog: look.yLog,
      unit: this.unit,
      window: look.window,
      clip: look.clip,
      grouped: runs.some(({ group }) => group !== null),
    };
  }

  /** Why there is nothing along an axis, though there are points. */
  private hint(axis: string): View["hint"] | null {
    const { points } = this.metric;
    if (points === 0) return null;
    const words = `${format.count(points)} ${points === 1 ? "point" : "points"}`;
    if (axis === "step") return { text: `${words} without a step.`, x: this.feed.runs.length > 1 ? "relative" : "time" };
    return axis.startsWith("metric:") ? { text: `${words}, none logged together with ${axis.slice(7)}.` } : null;
  }

  /** Say which runs have points, but none with a step. */
  private async remarkOnRuns(runs: Selected[]): Promise<void> {
    const lines = await this.feed.load(this.metric.name);
    const drawn = new Set(lines.map(({ run }) => run));
    const missing = runs.filter(({ id }) => !drawn.has(id)).map(({ id }) => id);
    if (missing.length === 0) return;
    const asked = missing.join("\n");
    if (asked !== this.asked) {
      this.asked = asked;
      this.stepless = runsWithPoints(this.feed.project, missing, this.metric.name).catch(() => 0);
    }
    const stepless = await this.stepless;
    if (stepless === 0) return;
    const words = `${stepless === 1 ? "1 run has" : `${stepless} runs have`} points without a step: choose time for x to see them`;
    this.remarkText = [this.remarkText, words].filter(Boolean).join(" · ");
  }

  private async lines(runs: Selected[], look: Look, ranked: boolean): Promise<Trace[]> {
    const lines = (await this.feed.load(this.metric.name)).filter((line) => belongs(line, this.metric));
    const groups = new Map<string, { color: string; lines: api.Line[] }>();
    const folded = new Groups();
    const traces: Trace[] = [];
    if (ranked) this.remarkText = "mean and range of each run's ranks";
    for (const run of runs) {
      let own = lines.filter((line) => line.run === run.id);
      const first = look.ranks === "first" && own.length > 1 ? run.firstProcess() : null;
      if (first !== null) own = own.filter((line) => line.process === first);
      if (look.process && own.some((line) => line.process === look.process)) own = own.filter((line) => line.process === look.process);
      if (ranked && (own.length > 1 || run.group !== null)) {
        const band = aggregate(own);
        const note = `mean of ${own.length} ranks`;
        if (run.group !== null) folded.add(run.group, run.color, band, own.length);
        else traces.push({ ...curves({ x: band.x, y: band.middle, gaps: band.gaps }, look.smoothing), label: run.name, color: run.color, band, note: () => note });
        continue;
      }
      if (run.group !== null) {
        const group = groups.get(run.group) ?? { color: run.color, lines: [] };
        group.lines.push(...own);
        groups.set(run.group, group);
        continue;
      }
      const several = own.length > 1;
      for (const line of own) {
        const words = [
          runs.length > 1 ? run.name : "",
          several && run.processes > 1 ? run.processName(line.process) : "",
          several && this.metric.scopes.length > 1 ? line.scope : "",
          ...Object.values(line.attributes).map(String),
        ];
        const alone = runs.length === 1 && several;
        traces.push({
          ...curves(line, look.smoothing),
          label: words.filter(Boolean).join(" · ") || run.name,
          color: alone ? seriesColor(traces.length) : run.color,
          sampled: line.total > line.x.length,
          thin: several && !alone,
        });
      }
    }
    for (const [name, group] of groups) {
      const band = aggregate(group.lines);
      const note = `mean of ${group.lines.length}`;
      traces.push({ ...curves({ x: band.x, y: band.middle, gaps: band.gaps }, look.smoothing), label: name, color: group.color, band, note: () => note });
    }
    return [...traces, ...folded.traces("means", look.smoothing)];
  }

  private async overRanks(runs: Selected[], look: Look): Promise<Trace[]> {
    const { project } = this.feed;
    const { name, unit, kind, temporality, scopes } = this.metric;
    const scope = scopes.length === 1 ? { scope: scopes[0] as string } : {};
    const window = look.window ? { start: look.window[0], stop: look.window[1] } : {};
    const answers = await Promise.all(
      runs.map((run) =>
        api.ranks(run.id, { project, metric: name, unit, kind, temporality, ...scope, x: look.x, max_points: 400, ...rounded(window, look.x) }),
      ),
    );
    const traces: Trace[] = [];
    const groups = new Groups();
    for (const [position, run] of runs.entries()) {
      const ranks = answers[position] as api.Ranks;
      const column = (values: api.Number_[]) => Float64Array.from(values, api.num);
      const band: Band = { x: column(ranks.x), low: column(ranks.min), middle: column(ranks.median), high: column(ranks.max) };
      if (band.x.length === 0) continue;
      if (run.group !== null) {
        groups.add(run.group, run.color, band, ranks.processes);
        continue;
      }
      const called = (process: string | undefined) => (process === undefined ? "?" : run.processName(process));
      traces.push({
        ...curves({ x: band.x, y: band.middle, gaps: band.gaps }, look.smoothing),
        label: runs.length > 1 ? run.name : `median of ${ranks.processes} ranks`,
        color: run.color,
        band,
        note: (i) => `highest ${called(ranks.highest[i])}, lowest ${called(ranks.lowest[i])}`,
      });
      if (runs.length === 1) this.remarkText = outlier(ranks, called);
    }
    return [...traces, ...groups.traces("medians", look.smoothing)];
  }
}

/** How many of some runs have points of a metric. */
async function runsWithPoints(project: string, ids: string[], metric: string): Promise<number> {
  const filter = `id in (${ids.map((id) => JSON.stringify(id)).join(", ")}) and archived in (true, false)`;
  const { runs } = await api.runs({ project, filter, limit: 1000, fields: `summary.${metric}` });
  return runs.filter(({ summary }) => (summary[metric]?.count ?? 0) > 0).length;
}

/** Groups of runs, of which each has a band over its ranks. */
class Groups {
  private readonly found = new Map<string, { color: string; bands: Band[]; ranks: number }>();

  add(name: string, color: string, band: Band, ranks: number): void {
    const group = this.found.get(name) ?? { color, bands: [], ranks: 0 };
    group.bands.push(band);
    group.ranks += ranks;
    this.found.set(name, group);
  }

  traces(middles: string, smoothing: number): Trace[] {
    return [...this.found].map(([label, { color, bands, ranks }]) => {
      const band = together(bands);
      const note = `mean of the ${middles} of ${bands.length} ${bands.length === 1 ? "run" : "runs"}, ${ranks} ranks`;
      return { ...curves({ x: band.x, y: band.middle, gaps: band.gaps }, smoothing), label, color, band, note: () => note };
    });
  }
}

/** Of several bands: the mean of their middles, and their lowest and highest edges. */
function together(bands: Band[]): Band {
  const part = (name: "low" | "middle" | "high") => aggregate(bands.map((band) => ({ x: band.x, y: band[name], gaps: band.gaps })));
  const { x, middle, gaps } = part("middle");
  return { x, low: part("low").low, middle, high: part("high").high, gaps };
}

function curves({ x, y, gaps }: Curve, smoothing: number): Pick<Trace, "x" | "y" | "gaps" | "raw"> {
  if (smoothing <= 0) return { x, y, gaps };
  return { x, y: smooth({ x, y }, smoothing), gaps, raw: { x, y, gaps } };
}

let palette: (index: number) => string = () => "currentColor";

/** Colours of lines that are not runs. */
export function usePalette(colors: (index: number) => string): void {
  palette = colors;
}

function seriesColor(index: number): string {
  return palette(index);
}

function rounded(window: { start?: number; stop?: number }, x: string): { start?: number; stop?: number } {
  if (x !== "step" || window.start === undefined || window.stop === undefined) return window;
  return { start: Math.floor(window.start), stop: Math.ceil(window.stop) };
}

/** The rank that stands apart: highest or lowest nearly always, and far from the median. */
function outlier(ranks: api.Ranks, name: (process: string) => string): string {
  const n = ranks.x.length;
  if (n < 4 || ranks.processes < 3) return "";
  const found: string[] = [];
  for (const [words, extreme, values] of [
    ["highest", ranks.highest, ranks.max],
    ["lowest", ranks.lowest, ranks.min],
  ] as const) {
    const tally = new Map<string, number>();
    for (const process of extreme.slice(-200)) tally.set(process, (tally.get(process) ?? 0) + 1);
    const [top, times] = [...tally].sort((a, b) => b[1] - a[1])[0] ?? ["", 0];
    const share = times / Math.min(n, 200);
    let distance = 0;
    let spread = 0;
    for (let i = Math.max(0, n - 200); i < n; i++) {
      const median = api.num(ranks.median[i]);
      distance += Math.abs(api.num(values[i]) - median) || 0;
      spread += Math.abs(api.num(ranks.max[i]) - api.num(ranks.min[i])) || 0;
    }
    if (share > 0.6 && distance > spread * 0.6) found.push(`${name(top)} is the ${words} ${Math.round(share * 100)} % of the time`);
  }
  return found.join("; ");
}
