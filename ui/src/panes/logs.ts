// The log of a run: console output and log records of all processes, live.

import { button, fill, h, iconButton, setOptions, setText, setValue } from "../base/dom";
import { download } from "../base/download";
import * as format from "../base/format";
import * as route from "../base/route";
import type { Update } from "../data/live";
import { LogWindow } from "../data/logWindow";
import { type LogFilter, type LogLine, logs, textOf, wholeLine } from "../data/logs";
import type { RunSelection } from "../selection/runSelection";
import { type TimeStyle, labelOf, logRow, moment } from "../widgets/logRow";
import { VirtualList } from "../widgets/virtualList";
import type { Pane } from "./pane";

const LINE_HEIGHT = 20;
const LEAST_HEIGHT = 280;
const SEARCH_MS = 250;
const PAGE = 10_000;
const WHOLE_TEXT = 4 << 20;
const MAX_COPIED = 50_000;
const NARROW = 760;

const LEVELS: [string, string][] = [
  ["", "all levels"],
  ["9", "info and above"],
  ["13", "warnings and errors"],
  ["17", "errors"],
];
const STREAMS: [string, string][] = [
  ["", "all sources"],
  ["stdout", "stdout"],
  ["stderr", "stderr"],
];
const TIMES: [TimeStyle, string][] = [
  ["clock", "time"],
  ["date", "date and time"],
  ["relative", "since start"],
  ["none", "no times"],
];

export class LogsPane implements Pane {
  readonly element = h("div", { class: "pane logs" });
  private readonly window: LogWindow;
  private readonly list: VirtualList<LogLine>;
  private params = new URLSearchParams();
  private filterKey: string | null = null;
  private looks = "";
  private opening: Promise<void> = Promise.resolve();
  private search = "";
  private searchTimer = 0;
  private readonly open = new Set<string>();
  private current = "";
  /** Whether the first lines that match have been looked for since the search changed. */
  private matches: number[] | null = null;

  private readonly field = h("input", { type: "search", class: "search", placeholder: "Search the log", "aria-label": "Search the log", "data-search": true, on: { input: () => this.onInput(), keydown: (event) => this.onFieldKey(event) } });
  private readonly count = h("output", { class: "muted", "aria-live": "polite" });
  private readonly previous = iconButton("up", "Previous match (Enter)", () => void this.jump("older"));
  private readonly following = iconButton("down", "Next match (Shift+Enter)", () => void this.jump("newer"));
  private readonly only = h("input", { type: "checkbox", on: { change: () => route.change({ only: this.only.checked ? "1" : null }) } });
  private readonly level = choice("Lowest level", "level", LEVELS);
  private readonly stream = choice("Source", "stream", STREAMS);
  private readonly rank = choice("Rank", "rank", []);
  private readonly times = choice("Times", "times", TIMES, "clock");
  private readonly wrap = h("input", { type: "checkbox", on: { change: () => route.change({ wrap: this.wrap.checked ? "1" : "0" }) } });
  private readonly status = h("div", { class: "log-status", role: "status" });
  private readonly notice = h("p", { class: "log-notice" });
  private readonly newest = button("", () => this.toNewest(), { class: "to-newest" });
  private readonly message = h("div", { class: "log-message" }, h("p", { class: "state", role: "status" }, "Loading …"));
  private readonly stage: HTMLElement;
  private readonly resized = new ResizeObserver(() => this.resize());
  private readonly onResize = () => this.resize();

  constructor(private readonly selection: RunSelection) {
    const [run = ""] = selection.ids;
    this.window = new LogWindow(run, selection.project, (before) => this.onLines(before), (error) => this.onError(error));
    this.list = new VirtualList<LogLine>("Log", LINE_HEIGHT, {
      create: (line) => this.row(line),
      key: (line) => `${line.id}${this.open.has(line.id) ? " open" : ""}${line.id === this.current ? " current" : ""}`,
      nearStart: () => void this.window.loadOlder(),
      nearEnd: () => void this.window.loadNewer(),
      stick: () => this.drawStatus(),
    });
    this.stage = h("div", { class: "log-stage" }, this.notice, this.list.element, this.message, this.newest);
    const wide = (label: HTMLElement) => (label.classList.add("check"), label);
    this.element.append(
      h(
        "div",
        { class: "controls", role: "search" },
        h("span", { class: "find" }, this.field, this.count, this.previous, this.following),
        wide(h("label", { title: "Hide lines that do not match" }, this.only, "only matches")),
        this.level,
        this.rank,
        this.stream,
        this.times,
        wide(h("label", {}, this.wrap, "wrap")),
        h("span", { class: "log-tools" }, button("Copy", (event) => void this.copy(event.currentTarget as HTMLButtonElement), { title: "Copy the lines that are loaded" }), button("Download", (event) => void this.save(event.currentTarget as HTMLButtonElement), { title: "Save all lines of these filters as a text file" })),
      ),
      this.stage,
      this.status,
    );
    this.resized.observe(document.body);
    addEventListener("resize", this.onResize);
  }

  apply(params: URLSearchParams): void {
    this.params = params;
    const search = params.get("q") ?? "";
    setValue(this.field, search);
    this.only.checked = params.get("only") === "1";
    this.wrap.checked = this.isWrapped;
    for (const select of [this.level, this.stream, this.times]) select.value = params.get(select.name) ?? select.dataset.default ?? "";
    this.drawRanks();
    this.element.classList.toggle("wrapped", this.isWrapped);
    const filter = this.filter();
    const key = JSON.stringify(filter);
    const looks = JSON.stringify([search, this.isWrapped, params.get("times"), this.params.get("line")]);
    if (key !== this.filterKey) {
      this.filterKey = key;
      this.open.clear();
      this.search = search;
      this.matches = null;
      const line = params.get("line");
      this.current = line ?? "";
      fill(this.message, h("p", { class: "state", role: "status" }, "Loading …"));
      this.list.isStuck = !line;
      this.opening = this.window.open(filter, line).then(() => void (line && this.reveal(line)));
    } else if (looks !== this.looks) {
      if (search !== this.search) {
        this.search = search;
        this.matches = null;
      }
      this.list.redraw();
    }
    this.looks = looks;
    this.drawCount();
    this.resize();
  }


  onUpdate(update: Update): void {
    if (update.logs) void this.window.onArrival();
  }

  onStart(): void {
    void this.opening.then(() => this.window.onArrival());
  }

  onReload(): void {
    this.drawRanks();
    this.resize();
  }

  onKey(event: KeyboardEvent): void {
    if (event.key === "End" || event.key === "G") this.toNewest();
    else if (event.key === "n") void this.jump("newer");
    else if (event.key === "N" || event.key === "p") void this.jump("older");
    else return;
    event.preventDefault();
  }

  close(): void {
    clearTimeout(this.searchTimer);
    removeEventListener("resize", this.onResize);
    this.resized.disconnect();
    this.list.close();
    this.window.close();
  }

  private get isWrapped(): boolean {
    const wrap = this.params.get("wrap");
    return wrap === null ? innerWidth < NARROW : wrap === "1";
  }

  private filter(): LogFilter {
    const number = (name: string) => (/^\d+$/.test(this.params.get(name) ?? "") ? Number(this.params.get(name)) : undefined);
    const [severity, rank, stream, search] = [number("level"), number("rank"), this.params.get("stream"), this.params.get("q")];
    return {
      ...(severity ? { severity } : {}),
      ...(rank !== undefined ? { rank } : {}),
      ...(stream === "stdout" || stream === "stderr" ? { stream } : {}),
      ...(search && this.params.get("only") === "1" ? { search } : {}),
    };
  }

  private row(line: LogLine): HTMLElement {
    return logRow(line, {
      times: (TIMES.find(([style]) => style === this.params.get("times"))?.[0] ?? "clock"),
      started: format.epoch(this.selection.single?.started),
      nameOf: ({ process }) => this.processName(process),
      search: this.search,
      isOpen: this.open.has(line.id),
      isCurrent: line.id === this.current,
      toggle: ({ id }) => {
        if (!this.open.delete(id)) this.open.add(id);
        this.list.show(this.window.lines);
      },
      readWhole: (truncated) => wholeLine(this.selection.ids[0] ?? "", this.selection.project, truncated),
      address: ({ id }) => {
        const { path, params } = route.current();
        params.set("line", id);
        return route.address(path, params);
      },
    });
  }

  /** The rank of a line's process, or its host; "" if all lines are of one process. */
  private processName(id: string): string {
    const processes = this.selection.single?.processes ?? [];
    const process = processes.find((candidate) => candidate.id === id);
    const ranks = new Set(processes.map(({ rank }) => rank).filter((rank) => rank !== null));
    if (!process || (ranks.size < 2 && processes.length < 2) || this.params.get("rank")) return "";
    if (process.rank !== null) return ranks.size > 1 ? `r${process.rank}` : "";
    return process.host ?? id.slice(0, 8);
  }

  private drawRanks(): void {
    const ranks = [...new Set((this.selection.single?.processes ?? []).map(({ rank }) => rank).filter((rank) => rank !== null))].sort((a, b) => a - b);
    setOptions(this.rank, [["", "all ranks"], ...ranks.map((rank): [string, string] => [String(rank), `rank ${rank}`])]);
    this.rank.value = this.params.get("rank") ?? "";
    this.rank.hidden = ranks.length < 2;
  }

  private onLines(before: number): void {
    this.matches = null;
    const { lines, loaded } = this.window;
    if (loaded) fill(this.message, ...(lines.length ? [] : [this.emptyMessage()]));
    this.list.show(lines, before);
    this.drawStatus();
    this.drawCount();
  }

  private emptyMessage(): HTMLElement {
    if (this.filterKey !== "{}") {
      const place = this.window.searchedTo;
      return h("div", { class: "state" }, h("h2", {}, place ? "Searching …" : "No matching lines"), h("p", {}, place ? `No match since ${moment({ time: place.split("-")[0] ?? "" } as LogLine)}.` : "Change the search or the filters to see other lines."));
    }
    return h(
      "div",
      { class: "state" },
      h("h2", {}, "No log lines yet"),
      h("p", {}, "Console output and records of Python's logging appear here, and so do OpenTelemetry log records of any other program."),
    );
  }

  private onError(error: unknown): void {
    fill(this.message, h("div", { class: "state", role: "alert" }, h("h2", {}, "Could not load the log"), h("p", {}, format.message(error))));
  }

  private drawStatus(): void {
    const { usage, lines, atStart, atEnd, missed, searchedTo } = this.window;
    const isLive = this.list.isStuck && atEnd;
    const words = [`${usage.lines.toLocaleString()} ${usage.lines === 1 ? "line" : "lines"}`, format.bytes(usage.size)];
    if (lines.length < usage.lines && this.filterKey === "{}") words.push(`${lines.length.toLocaleString()} loaded`);
    if (this.selection.runs[0]?.state === "running" && isLive) words.push("following");
    if (searchedTo) words.push(`searching, at ${moment({ time: searchedTo.split("-")[0] ?? "" } as LogLine)}`);
    setText(this.status, words.join(" · "));
    this.newest.hidden = isLive || lines.length === 0;
    setText(this.newest, missed ? `↓ ${missed.toLocaleString()} new ${missed === 1 ? "line" : "lines"}` : "↓ Newest");
    const evicted = usage.evicted;
    this.notice.hidden = evicted === 0 || !atStart;
    setText(this.notice, evicted ? `${evicted.toLocaleString()} older lines were deleted, because the log had too many.` : "");
  }

  private toNewest(): void {
    if (this.params.get("line")) route.change({ line: null });
    if (this.window.atEnd) return this.list.toEnd();
    this.list.isStuck = true;
    void this.window.open(this.filter());
  }

  private reveal(id: string): void {
    const index = this.window.lines.findIndex((line) => line.id === id);
    if (index < 0) return;
    this.current = id;
    this.list.show(this.window.lines);
    this.list.reveal(index);
    this.drawStatus();
  }

  private onInput(): void {
    clearTimeout(this.searchTimer);
    this.searchTimer = window.setTimeout(() => route.change({ q: this.field.value }), SEARCH_MS);
  }

  private onFieldKey(event: KeyboardEvent): void {
    if (event.key !== "Enter") return;
    event.preventDefault();
    clearTimeout(this.searchTimer);
    route.change({ q: this.field.value });
    void this.jump(event.shiftKey ? "newer" : "older");
  }

  /** Indices of the loaded lines that match the search. */
  private matching(): number[] {
    if (this.matches) return this.matches;
    const needle = this.search.toLowerCase();
    const matches: number[] = [];
    if (needle) for (const [index, line] of this.window.lines.entries()) if (textOf(line).toLowerCase().includes(needle)) matches.push(index);
    this.matches = matches;
    return matches;
  }

  private drawCount(): void {
    const matches = this.matching();
    for (const arrow of [this.previous, this.following]) arrow.disabled = !this.search;
    const complete = this.window.atStart && this.window.atEnd;
    const place = matches.findIndex((index) => this.window.lines[index]?.id === this.current);
    const total = `${matches.length.toLocaleString()}${complete ? "" : "+"}`;
    setText(this.count, !this.search || !this.window.loaded ? "" : place >= 0 ? `${place + 1} of ${total}` : matches.length || !complete ? total : "none");
  }

  /** Go to the previous or next match: among the loaded lines, or else where the server finds one. */
  private async jump(direction: "older" | "newer"): Promise<void> {
    if (!this.search) return;
    await this.opening;
    const { lines } = this.window;
    const matches = this.matching();
    const at = lines.findIndex(({ id }) => id === this.current);
    const { first, last } = this.list.visible();
    const from = at >= 0 && matches.includes(at) ? at : direction === "older" ? last + 1 : first - 1;
    const index = direction === "older" ? matches.findLast((match) => match < from) : matches.find((match) => match > from);
    if (index !== undefined) {
      this.reveal(lines[index]?.id ?? "");
      this.drawCount();
      return;
    }
    const edge = direction === "older" ? lines[0] : lines.at(-1);
    if (!edge || (direction === "older" ? this.window.atStart : this.window.atEnd)) return;
    setText(this.count, "searching …");
    try {
      const found = await this.window.find(this.search, edge.id, direction, (position) => setText(this.count, `at ${moment({ time: position.split("-")[0] ?? "" } as LogLine).slice(0, 19)} …`));
      if (found) {
        this.list.isStuck = false;
        await this.window.open(this.filter(), found);
        this.reveal(found);
      }
      this.drawCount();
      if (!found) setText(this.count, direction === "older" ? "no older match" : "no newer match");
    } catch (error) {
      setText(this.count, format.message(error));
    }
  }

  private asText(line: LogLine): string {
    const name = this.processName(line.process);
    return [moment(line), name && `[${name}]`, labelOf(line), textOf(line)].filter(Boolean).join(" ");
  }

  private async copy(control: HTMLButtonElement): Promise<void> {
    const lines = this.window.lines.slice(-MAX_COPIED).map((line) => this.asText(line));
    try {
      await navigator.clipboard.writeText(lines.join("\n"));
      flash(control, "Copied");
    } catch {
      flash(control, "Not permitted");
    }
  }

  private async save(control: HTMLButtonElement): Promise<void> {
    const [run = ""] = this.selection.ids;
    const parts: string[] = [];
    let after: string | null = "0-0";
    control.disabled = true;
    try {
      while (after !== null) {
        const page: Awaited<ReturnType<typeof logs>> = await logs(run, { project: this.selection.project, ...this.filter(), after, limit: PAGE, max_text: WHOLE_TEXT });
        for (const line of page.lines) parts.push(this.asText(line), "\n");
        after = page.newer && (page.stopped || page.lines.length) ? page.newer : null;
        setText(control, `${(parts.length / 2).toLocaleString()} lines`);
      }
      download(`${this.selection.single?.name || run}.log`, new Blob(parts, { type: "text/plain" }));
      setText(control, "Download");
    } catch (error) {
      flash(control, format.message(error));
    } finally {
      control.disabled = false;
    }
  }

  /** Fill the window below the pane's top, so that the log has the only scroll bar. */
  private resize(): void {
    if (!this.element.isConnected) return;
    const top = this.element.getBoundingClientRect().top + scrollY;
    this.element.style.height = `${Math.max(LEAST_HEIGHT, innerHeight - top)}px`;
  }
}

function choice(label: string, parameter: string, options: [string, string][], normal = ""): HTMLSelectElement {
  const select = h("select", { "aria-label": label, name: parameter, "data-default": normal, on: { change: () => route.change({ [parameter]: select.value === normal ? null : select.value }) } });
  setOptions(select, options);
  return select;
}

function flash(control: HTMLButtonElement, words: string): void {
  const before = control.textContent ?? "";
  setText(control, words);
  setTimeout(() => setText(control, before), 2000);
}
