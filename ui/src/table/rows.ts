// Data of the runs table: pages of a long list, loaded when they become visible, or all runs in groups.

import * as api from "../data/api";
import { fieldText } from "../data/fields";

export interface Heading {
  heading: string;
  runs: api.Run[];
  open: boolean;
}

export type Item = api.Run | Heading;

export interface Request {
  project: string;
  filter: string;
  sort: string;
  fields: string;
  group: string;
  pinned: string[];
}

const PAGE = 200;
/** Number of rows that are loaded before they become visible. */
const PREFETCH_ROWS = 150;
const GROUP_PAGE = 1000;
const MAX_GROUPED_RUNS = 10_000;

export function isHeading(item: Item): item is Heading {
  return "heading" in item;
}

export class Rows {
  total = 0;
  /** Number of runs that match the filter, without headings and pinned runs. */
  matches = 0;
  private request: Request | null = null;
  private pages = new Map<number, api.Run[]>();
  private requestedPages = new Set<number>();
  private items: Item[] | null = null;
  private pinned: api.Run[] = [];
  private folded = new Set<string>();
  private abort = new AbortController();

  constructor(
    private readonly onChange: () => void,
    private readonly onError: (error: unknown) => void,
  ) {}

  at(index: number): Item | undefined {
    if (this.items) return this.items[index];
    if (index < this.pinned.length) return this.pinned[index];
    const rest = index - this.pinned.length;
    return this.pages.get(Math.floor(rest / PAGE))?.[rest % PAGE];
  }

  /** All runs in memory. */
  *loadedRuns(): Iterable<api.Run> {
    yield* this.pinned;
    for (const page of this.pages.values()) yield* page;
    for (const item of this.items ?? []) if (isHeading(item)) yield* item.runs;
  }

  /** Load another list. The old one stays visible until the response arrives. */
  async load(request: Request): Promise<void> {
    this.request = request;
    this.abort.abort();
    this.abort = new AbortController();
    const { signal } = this.abort;
    try {
      const pinned = await this.readPinned(request, signal);
      if (request.group) await this.loadGroups(request, pinned, signal);
      else {
        const { runs, total } = await this.page(request, 0, PAGE, signal);
        this.items = null;
        this.pinned = pinned;
        this.pages = new Map([[0, runs]]);
        this.requestedPages = new Set([0]);
        this.matches = total;
        this.total = total + pinned.length;
      }
      this.onChange();
    } catch (error) {
      if (!signal.aborted) this.onError(error);
    }
  }

  /** Reload the visible pages in the background. Errors are ignored. */
  async refresh(first: number, last: number): Promise<void> {
    const request = this.request;
    if (!request || (this.items && this.matches > GROUP_PAGE)) return;
    const { signal } = this.abort;
    const from = Math.max(0, Math.floor((first - this.pinned.length) / PAGE));
    const to = Math.max(0, Math.floor((last - this.pinned.length) / PAGE));
    try {
      const pinned = await this.readPinned(request, signal);
      if (this.items) {
        await this.loadGroups(request, pinned, signal);
        this.onChange();
        return;
      }
      this.pinned = pinned;
      for (let number = from; number <= to; number++) {
        if (!this.pages.has(number)) continue;
        const { runs, total } = await this.page(request, number * PAGE, PAGE, signal);
        this.pages.set(number, runs);
        this.matches = total;
        this.total = total + this.pinned.length;
      }
      this.onChange();
    } catch {
      // Retried at the next refresh.
    }
  }

  /** Load the pages of visible rows, and those next to them, so that they are present before they become visible. */
  need(first: number, last: number): void {
    const request = this.request;
    if (!request || this.items) return;
    const pages = Math.ceil(this.matches / PAGE);
    const from = Math.max(0, Math.floor((first - this.pinned.length - PREFETCH_ROWS) / PAGE));
    const to = Math.min(pages - 1, Math.floor(Math.max(0, last - 1 - this.pinned.length + PREFETCH_ROWS) / PAGE));
    const { signal } = this.abort;
    for (let number = from; number <= to; number++) {
      if (this.requestedPages.has(number)) continue;
      this.requestedPages.add(number);
      this.page(request, number * PAGE, PAGE, signal).then(
        ({ runs }) => {
          this.pages.set(number, runs);
          this.onChange();
        },
        (error) => {
          this.requestedPages.delete(number);
          if (!signal.aborted) this.onError(error);
        },
      );
    }
  }

  fold(heading: Heading): void {
    if (!this.folded.delete(heading.heading)) this.folded.add(heading.heading);
    const headings = (this.items ?? []).filter(isHeading);
    this.arrange(headings.map((other) => (other.heading === heading.heading ? { ...other, open: !other.open } : other)));
    this.onChange();
  }

  close(): void {
    this.abort.abort();
  }

  private async page(request: Request, offset: number, limit: number, signal: AbortSignal) {
    const { project, filter, sort, fields } = request;
    return api.runs({ project, filter, sort, fields, limit, offset }, signal);
  }

  private async readPinned({ project, pinned, fields }: Request, signal: AbortSignal): Promise<api.Run[]> {
    return pinned.length ? api.runsById(project, pinned, fields, signal) : [];
  }

  private async loadGroups(request: Request, pinned: api.Run[], signal: AbortSignal): Promise<void> {
    const runs: api.Run[] = [];
    let total = 1;
    while (runs.length < Math.min(total, MAX_GROUPED_RUNS)) {
      const page = await this.page(request, runs.length, GROUP_PAGE, signal);
      total = page.total;
      runs.push(...page.runs);
      if (page.runs.length === 0) break;
    }
    const groups = Map.groupBy(runs, (run) => fieldText(run, request.group));
    this.pinned = pinned;
    this.pages.clear();
    this.matches = total;
    const before = new Map((this.items ?? []).filter(isHeading).map((heading) => [JSON.stringify(heading), heading]));
    const headings = [...groups].map(([heading, members]): Heading => ({ heading, runs: members, open: !this.folded.has(heading) }));
    // Unchanged headings are kept, and with them their elements.
    this.arrange(headings.map((heading) => before.get(JSON.stringify(heading)) ?? heading));
  }

  private arrange(headings: Heading[]): void {
    this.items = [...this.pinned, ...headings.flatMap((heading): Item[] => [heading, ...(heading.open ? heading.runs : [])])];
    this.total = this.items.length;
  }
}
