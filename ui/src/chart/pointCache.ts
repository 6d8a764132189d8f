// Cache of the points of a selection of runs: batches requests, keeps responses, and appends new points.

import { remember } from "../base/remember";
import * as api from "../data/api";
import { follow, type Update } from "../data/live";
import { merge } from "./lineUpdate";

export interface AxisChoice {
  x: string;
  /** Whether the user has chosen x. If not, metrics without steps use another axis. */
  explicitAxis?: boolean;
  window: [number, number] | null;
  /** Whether attempts are separate lines, with the points that later attempts repeat. */
  allAttempts?: boolean;
  /** Whether lines of the parents of forked runs are read too. */
  parents?: boolean;
}

interface Entry {
  /** The axis of the lines. */
  x: string;
  lines: api.Line[];
  cursor: string;
}

interface QueuedRead {
  metric: string;
  resolve: (lines: api.Line[]) => void;
  reject: (error: unknown) => void;
}

const BATCH_POINTS = 50_000;
/** Estimated number of new points per line in an update. */
const UPDATE_POINTS = 50;
/** Number of points that are kept for charts out of sight: 16 bytes each. */
const MAX_POINTS = 1_000_000;
const MAX_REQUESTS = 3;
const MAX_METRICS = 100;

export class PointCache {
  connected = true;
  private entries = new Map<string, Entry>();
  private queue: QueuedRead[] = [];
  /** Requests whose responses have not arrived. */
  private pending = new Map<string, Promise<api.Line[]>>();
  private reading = new Set<string>();
  private dirty = new Set<string>();
  private listeners = new Map<string, Set<() => void>>();
  private activeRequests = 0;
  private generation = 0;
  private abort = new AbortController();
  private stop: (() => void) | null = null;
  /** Cursor at which the stream of updates started; "" before that. */
  private streamCursor = "";
  private scheduled = false;
  private idleCallbacks: (() => void)[] = [];

  constructor(
    readonly project: string,
    readonly runs: string[],
    private axisChoice: AxisChoice,
    /** Estimated number of lines of a metric in one run: one per process and set of attributes. */
    private readonly linesPerRun: (metric: string) => number,
    /** The axis of a metric that does not use steps by default; null if it does. */
    private readonly ownAxis: (metric: string) => string | null,
  ) {}

  /** The axis of a metric. */
  axis(metric: string): string {
    const { x, explicitAxis } = this.axisChoice;
    return (x === "step" && !explicitAxis && this.ownAxis(metric)) || x;
  }

  /** The range that a metric is zoomed to; null if the metric uses another axis than the others. */
  window(metric: string): [number, number] | null {
    return this.axis(metric) === this.axisChoice.x ? this.axisChoice.window : null;
  }

  /** Follow the runs. `onUpdate` also receives states and events. */
  follow(onUpdate: (update: Update) => void, onConnection: (connected: boolean) => void, onStart: () => void): void {
    this.stop = follow(
      this.runs,
      this.project,
      (update) => {
        if (update.many) this.markAllGrown();
        for (const metric of update.metrics ?? []) this.markGrown(metric);
        onUpdate(update);
      },
      (connected) => {
        this.connected = connected;
        onConnection(connected);
      },
      (cursor) => {
        onStart();
        this.streamCursor = cursor;
        for (const [metric, entry] of this.entries) if (entry.cursor !== cursor) this.markGrown(metric);
      },
    );
  }

  private markGrown(metric: string): void {
    // Metrics that have not been read need no mark: their first read is complete.
    if (this.entries.has(metric) || this.pending.has(metric)) this.dirty.add(metric);
    for (const listener of this.listeners.get(metric) ?? []) listener();
  }

  private markAllGrown(): void {
    for (const metric of new Set([...this.entries.keys(), ...this.pending.keys(), ...this.listeners.keys()])) this.markGrown(metric);
  }

  close(): void {
    this.stop?.();
    this.abort.abort();
  }

  /** Change the axis or range. Points that were read for the previous one are dropped. */
  setAxis(axisChoice: AxisChoice): void {
    if (JSON.stringify(axisChoice) === JSON.stringify(this.axisChoice)) return;
    this.axisChoice = axisChoice;
    this.abort.abort();
    this.abort = new AbortController();
    this.generation++;
    this.entries.clear();
    this.queue = [];
    this.pending.clear();
    this.reading.clear();
    this.activeRequests = 0;
    for (const resolve of this.idleCallbacks.splice(0)) resolve();
  }

  /** Wait until no requests are pending. */
  async idle(): Promise<void> {
    while (this.activeRequests > 0 || this.queue.length > 0) await new Promise<void>((resolve) => this.idleCallbacks.push(resolve));
  }

  /** Call the listener when a metric has new points. Returns a function that unsubscribes. */
  subscribe(metric: string, listener: () => void): () => void {
    const set = remember(this.listeners, metric, () => new Set()).add(listener);
    return () => {
      set.delete(listener);
      if (set.size === 0 && this.listeners.get(metric) === set) this.listeners.delete(metric);
    };
  }

  /** Load the lines of a metric, from memory if they are up to date. */
  load(metric: string): Promise<api.Line[]> {
    let entry = this.entries.get(metric);
    if (entry && entry.x !== this.axis(metric)) {
      this.entries.delete(metric);
      entry = undefined;
    }
    const pending = this.pending.get(metric);
    if (!this.dirty.has(metric)) {
      if (pending) return pending;
      if (entry) return Promise.resolve(entry.lines);
    }
    const request = this.enqueue(metric);
    this.pending.set(metric, request);
    const forget = () => {
      if (this.pending.get(metric) === request) this.pending.delete(metric);
    };
    request.then(forget, forget);
    return request;
  }

  /** Request metrics before they are needed. Errors are ignored, because a later load retries. */
  prefetch(metrics: string[]): void {
    for (const metric of metrics) this.load(metric).catch(() => {});
    this.startRequests();
  }

  /** Drop the points of charts that are out of sight, those read longest ago first, if there are many. */
  private evict(): void {
    let points = 0;
    for (const { lines } of this.entries.values()) for (const { x } of lines) points += x.length;
    for (const [metric, { lines }] of this.entries) {
      if (points <= MAX_POINTS) return;
      if (this.listeners.has(metric) || this.reading.has(metric)) continue;
      this.entries.delete(metric);
      this.dirty.delete(metric);
      for (const { x } of lines) points -= x.length;
    }
  }

  private enqueue(metric: string): Promise<api.Line[]> {
    return new Promise((resolve, reject) => {
      this.queue.push({ metric, resolve, reject });
      if (!this.scheduled) {
        this.scheduled = true;
        queueMicrotask(() => {
          this.scheduled = false;
          this.startRequests();
        });
      }
    });
  }

  /** Number of points to request per line: fewer if there are many lines, which are thin and close to each other. */
  private maxPoints(metric: string): number {
    const lines = this.lineCount(metric);
    return lines > 40 ? 240 : lines > 12 ? 500 : 1000;
  }

  /** Estimated number of lines of a metric. */
  lineCount(metric: string): number {
    return this.runs.length * Math.max(1, this.linesPerRun(metric));
  }

  private startRequests(): void {
    while (this.activeRequests < MAX_REQUESTS) {
      // Two responses from one cursor would contain the same points twice.
      const ready = this.queue.filter(({ metric }) => !this.reading.has(metric));
      const [first] = ready;
      if (!first) return;
      // Metrics with the same cursor are read together, as are those without one.
      const cursor = this.cursorOf(first);
      const x = this.axis(first.metric);
      const points = this.maxPoints(first.metric);
      const batch: QueuedRead[] = [];
      let room = BATCH_POINTS;
      for (const item of ready) {
        if (this.cursorOf(item) !== cursor || this.maxPoints(item.metric) !== points || this.axis(item.metric) !== x) continue;
        room -= (cursor ? UPDATE_POINTS : points) * this.lineCount(item.metric);
        if (batch.length > 0 && (room < 0 || batch.length >= MAX_METRICS)) break;
        batch.push(item);
      }
      this.queue = this.queue.filter((item) => !batch.includes(item));
      this.activeRequests++;
      void this.read(batch, x, cursor, points);
    }
  }

  private cursorOf({ metric }: QueuedRead): string {
    return this.entries.get(metric)?.cursor ?? "";
  }

  private async read(batch: QueuedRead[], x: string, cursor: string, maxPoints: number): Promise<void> {
    const { generation, streamCursor } = this;
    const names = [...new Set(batch.map(({ metric }) => metric))];
    for (const name of names) {
      this.dirty.delete(name);
      this.reading.add(name);
    }
    try {
      const window = this.window(names[0] as string);
      const answer = await api.series(
        {
          runs: this.runs.map((id) => api.reference(this.project, id)),
          metrics: names,
          x,
          max_points: maxPoints,
          ...(window ? { start: window[0], stop: window[1] } : {}),
          ...(cursor ? { after: cursor } : {}),
          ...(this.axisChoice.allAttempts ? { attempt: "all" } : {}),
          ...(this.axisChoice.parents && x === "step" ? { parents: true } : {}),
        },
        this.abort.signal,
      );
      if (generation !== this.generation) return;
      for (const name of names) {
        const fresh = answer.series.filter(({ metric }) => metric === name);
        const before = cursor && !answer.reset ? (this.entries.get(name)?.lines ?? []) : [];
        // Set last: `evict` drops the entries that were read longest ago.
        this.entries.delete(name);
        this.entries.set(name, { x, cursor: answer.cursor, lines: merge(before, fresh, maxPoints, x) });
      }
      for (const { metric, resolve } of batch) resolve(this.entries.get(metric)?.lines ?? []);
      this.evict();
      // The stream started in the meantime: points that arrived between the two cursors are in neither.
      if (streamCursor !== this.streamCursor && answer.cursor !== this.streamCursor) for (const name of names) this.markGrown(name);
    } catch (error) {
      if (generation !== this.generation) return;
      for (const name of names) this.dirty.add(name);
      for (const { reject } of batch) reject(error);
    } finally {
      if (generation === this.generation) {
        this.activeRequests--;
        for (const name of names) this.reading.delete(name);
        this.startRequests();
        if (this.activeRequests === 0) for (const resolve of this.idleCallbacks.splice(0)) resolve();
      }
    }
  }
}
