// The part of a run's log that a page holds: consecutive lines, which grow at both ends and with the lines that arrive.

import type * as schemas from "./api.types";
import { type LogFilter, type LogLine, type LogUsage, compare, logs } from "./logs";

const PAGE = 1000;
/** Maximum number of lines; beyond it, those at the other end are dropped. */
const MAX_LINES = 200_000;
/** Minimum time between two reads of new lines. */
const LIVE_MS = 250;
/** Requests in a row of a search that finds nothing, each of which may take two seconds. */
const MAX_SEARCHES = 30;

export class LogWindow {
  lines: LogLine[] = [];
  usage: LogUsage = { lines: 0, size: 0, evicted: 0 };
  /** Number of lines that arrived while the window did not reach the newest line. */
  missed = 0;
  /** Number of lines that the server could not read. */
  damaged = 0;
  /** Position that a running search has reached; null if none is running. */
  searchedTo: string | null = null;
  loaded = false;
  private older: string | null = null;
  private newer: string | null = null;
  private cursor = "";
  private filter: LogFilter = {};
  private abort = new AbortController();
  private busy = { older: false, newer: false, live: false };
  private liveAgain = false;
  private closed = false;

  /** `onChange` is called after the lines have changed, with the number of lines that were added before the others. */
  constructor(
    private readonly run: string,
    private readonly project: string,
    private readonly onChange: (before: number) => void,
    private readonly onError: (error: unknown) => void,
  ) {}

  get atStart(): boolean {
    return this.older === null;
  }

  get atEnd(): boolean {
    return this.newer === null;
  }

  close(): void {
    this.closed = true;
    this.abort.abort();
  }

  /** Read the newest lines that match, or those around a position. */
  async open(filter: LogFilter, around: string | null = null): Promise<void> {
    this.abort.abort();
    this.abort = new AbortController();
    this.filter = filter;
    this.busy = { older: false, newer: false, live: false };
    this.missed = this.damaged = 0;
    const { signal } = this.abort;
    try {
      const before = await this.read(around ? { before: next(around), limit: PAGE / 2 } : {}, signal);
      let { lines, newer } = before;
      if (around) {
        const after = await this.read({ after: around, limit: PAGE / 2 }, signal);
        lines = [...lines, ...after.lines];
        newer = after.newer;
      }
      if (signal.aborted) return;
      this.lines = lines;
      this.older = before.older;
      this.newer = around ? newer : null;
      this.cursor = before.cursor;
      this.loaded = true;
      this.onChange(0);
      if (before.lines.length === 0 && before.stopped) await this.loadOlder();
    } catch (error) {
      this.report(error, signal);
    }
  }

  /** Read lines before the first one. A search goes on until it finds some. */
  async loadOlder(): Promise<void> {
    if (this.busy.older || this.older === null) return;
    const { signal } = this.abort;
    this.busy.older = true;
    try {
      for (let turn = 0; turn < MAX_SEARCHES && this.older !== null; turn++) {
        const page: schemas.Logs = await this.read({ before: this.older }, signal);
        if (signal.aborted) return;
        this.older = page.older;
        this.searchedTo = page.stopped && page.lines.length === 0 ? page.older : null;
        this.lines = [...page.lines, ...this.lines];
        if (this.lines.length > MAX_LINES) {
          this.lines.length = MAX_LINES;
          this.newer = this.lines.at(-1)?.id ?? null;
        }
        this.onChange(page.lines.length);
        if (page.lines.length > 0) return;
      }
    } catch (error) {
      this.report(error, signal);
    } finally {
      if (!signal.aborted) {
        this.busy.older = false;
        this.searchedTo = null;
      }
    }
  }

  async loadNewer(): Promise<void> {
    if (this.busy.newer || this.newer === null) return;
    const { signal } = this.abort;
    this.busy.newer = true;
    try {
      const page = await this.read({ after: this.newer }, signal);
      if (signal.aborted) return;
      this.newer = page.newer;
      if (this.newer === null) {
        this.cursor = page.cursor;
        this.missed = 0;
      }
      this.lines = [...this.lines, ...page.lines];
      const excess = Math.max(0, this.lines.length - MAX_LINES);
      if (excess) {
        this.lines = this.lines.slice(excess);
        this.older = this.lines[0]?.id ?? null;
      }
      this.onChange(-excess);
    } catch (error) {
      this.report(error, signal);
    } finally {
      if (!signal.aborted) this.busy.newer = false;
    }
  }

  /** Read the lines that have arrived, at most a few times a second. */
  async onArrival(): Promise<void> {
    if (!this.loaded) return;
    if (this.busy.live) {
      this.liveAgain = true;
      return;
    }
    const { signal } = this.abort;
    this.busy.live = true;
    try {
      let more = true;
      while (more) {
        const page = await this.read({ since: this.cursor }, signal);
        if (signal.aborted) return;
        if (page.reset) {
          if (this.atEnd) return void this.open(this.filter);
          this.cursor = page.cursor;
          return;
        }
        this.cursor = page.cursor;
        more = page.more === true;
        this.add(page.lines);
      }
      await new Promise((resolve) => setTimeout(resolve, LIVE_MS));
    } catch (error) {
      this.report(error, signal);
    } finally {
      if (!signal.aborted) {
        this.busy.live = false;
        if (this.liveAgain && !this.closed) {
          this.liveAgain = false;
          void this.onArrival();
        }
      }
    }
  }

  /** Find the nearest line with a text before or after a position, beyond what has been read. Returns its ID. */
  async find(search: string, from: string, direction: "older" | "newer", onProgress: (position: string) => void): Promise<string | null> {
    const { signal } = this.abort;
    let place: string | null = from;
    for (let turn = 0; turn < MAX_SEARCHES && place !== null; turn++) {
      const page: schemas.Logs = await this.read({ search, limit: 1, ...(direction === "older" ? { before: place } : { after: place }) }, signal);
      const [line] = page.lines;
      if (line) return line.id;
      place = direction === "older" ? page.older : page.newer;
      if (place) onProgress(place);
    }
    return null;
  }

  private async read(place: { before?: string; after?: string; since?: string; search?: string; limit?: number }, signal: AbortSignal): Promise<schemas.Logs> {
    const page = await logs(this.run, { project: this.project, limit: PAGE, ...this.filter, ...place }, signal);
    this.usage = page.usage;
    this.damaged += page.damaged ?? 0;
    return page;
  }

  /** Add lines that have arrived. Lines of other processes may be older than those that are there. */
  private add(arrived: LogLine[]): void {
    const [first] = this.lines;
    const known = new Set(this.lines.slice(-2 * PAGE).map(({ id }) => id));
    const fresh = arrived.filter(({ id }) => !known.has(id) && (this.older === null || !first || compare(id, first.id) > 0));
    if (!this.atEnd) {
      this.missed += fresh.length;
      this.onChange(0);
      return;
    }
    if (fresh.length === 0) return;
    fresh.sort((a, b) => compare(a.id, b.id));
    const last = this.lines.at(-1);
    const inOrder = !last || compare(fresh[0]?.id ?? "", last.id) > 0;
    this.lines = [...this.lines, ...fresh];
    if (!inOrder) this.lines.sort((a, b) => compare(a.id, b.id));
    const excess = Math.max(0, this.lines.length - MAX_LINES);
    if (excess) {
      this.lines = this.lines.slice(excess);
      this.older = this.lines[0]?.id ?? null;
    }
    this.onChange(-excess);
  }

  private report(error: unknown, signal: AbortSignal): void {
    if (!signal.aborted && !this.closed) this.onError(error);
  }
}

/** The position after a line. */
function next(id: string): string {
  const hyphen = id.indexOf("-");
  return `${id.slice(0, hyphen)}-${Number(id.slice(hyphen + 1)) + 1}`;
}
