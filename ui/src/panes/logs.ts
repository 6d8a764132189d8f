// The log of a run: console output and log records of all processes, live.

import { button, fill, h, setText } from "../base/dom";
import { download } from "../base/download";
import * as format from "../base/format";
import * as route from "../base/route";
import type { Update } from "../data/live";
import { LogWindow } from "../data/logWindow";
import { type LogLine, wholeLine } from "../data/logs";
import { LogControls } from "../logs/logControls";
import { LogFinder } from "../logs/logFinder";
import { logRow, momentOf } from "../logs/logRow";
import { lineText, wholeLog } from "../logs/logText";
import type { RunSelection } from "../selection/runSelection";
import { copyButton } from "../widgets/copyButton";
import { VirtualList } from "../widgets/virtualList";
import type { Pane } from "./pane";

const LINE_HEIGHT = 20;
const LEAST_HEIGHT = 280;
const MAX_COPIED = 50_000;
const SHOWN_MS = 4000;

export class LogsPane implements Pane {
  readonly element = h("div", { class: "pane logs" });
  private readonly run: string;
  private readonly window: LogWindow;
  private readonly list: VirtualList<LogLine>;
  private readonly finder: LogFinder;
  private readonly controls: LogControls;
  private filterKey: string | null = null;
  private looks = "";
  /** ID of the line in the address; null if there is none. */
  private line: string | null = null;
  /** Names of the processes by ID, if there are several. */
  private names = new Map<string, string>();
  private opening: Promise<void> = Promise.resolve();
  /** IDs of the lines whose details are shown. */
  private readonly open = new Set<string>();

  private readonly status = h("div", { class: "log-status", role: "status" });
  private readonly notice = h("p", { class: "log-notice" });
  private readonly newest = button("", () => this.toNewest(), { class: "to-newest" });
  private readonly message = h("div", { class: "log-message" });
  private readonly resized = new ResizeObserver(() => this.resize());
  private readonly onResize = () => this.resize();

  constructor(private readonly selection: RunSelection) {
    this.run = selection.ids[0] ?? "";
    this.window = new LogWindow(this.run, selection.project, (before) => this.onLines(before), (error) => this.showError(error));
    this.list = new VirtualList<LogLine>("Log", LINE_HEIGHT, {
      create: (line) => this.row(line),
      key: (line) => `${line.id}${this.open.has(line.id) ? " open" : ""}${line.id === this.finder.current ? " current" : ""}`,
      nearStart: () => void this.window.loadOlder(),
      nearEnd: () => void this.window.loadNewer(),
      stick: () => this.drawStatus(),
    });
    this.finder = new LogFinder(this.window, {
      visible: () => this.list.visible(),
      reveal: (id) => this.reveal(id),
      open: (id) => this.openAt(id),
      count: (words) => this.controls.setCount(words),
    });
    const copy = copyButton("Copy", () => this.window.lines.slice(-MAX_COPIED).map((line) => lineText(line, this.processName(line))).join("\n"), { title: "Copy the lines that are loaded" });
    const save = button("Download", () => void this.save(save), { title: "Save all lines of these filters as a text file" });
    this.controls = new LogControls((direction) => void this.jump(direction), copy, save);
    this.element.append(this.controls.element, h("div", { class: "log-stage" }, this.notice, this.list.element, this.message, this.newest), this.status);
    this.resized.observe(document.body);
    addEventListener("resize", this.onResize);
  }

  apply(params: URLSearchParams): void {
    this.controls.apply(params, this.readProcesses());
    this.element.classList.toggle("wrapped", this.controls.isWrapped);
    const line = params.get("line");
    const key = JSON.stringify(this.controls.filter);
    const looks = JSON.stringify([this.controls.search, this.controls.isWrapped, this.controls.times]);
    const isElsewhere = line !== null && line !== this.line && !this.window.lines.some(({ id }) => id === line);
    this.finder.update(this.controls.search);
    if (key !== this.filterKey || isElsewhere) {
      this.filterKey = key;
      this.open.clear();
      fill(this.message, h("p", { class: "state", role: "status" }, "Loading …"));
      this.opening = this.openAt(line);
    } else if (looks !== this.looks) this.list.redraw();
    else if (line !== null && line !== this.line) this.reveal(line);
    this.looks = looks;
    this.line = line;
    this.resize();
  }

  onUpdate(update: Update): void {
    if (update.logs) void this.window.onArrival();
  }

  onStart(): void {
    void this.opening.then(() => this.window.onArrival());
  }

  onReload(): void {
    this.controls.setRanks(this.readProcesses());
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
    removeEventListener("resize", this.onResize);
    this.resized.disconnect();
    this.controls.close();
    this.list.close();
    this.window.close();
  }

  /** Load the lines around a line, and show it; without one, the newest lines. */
  private async openAt(line: string | null): Promise<void> {
    this.finder.current = line ?? "";
    this.list.isStuck = line === null;
    await this.window.open(this.controls.filter, line);
    if (line !== null) this.reveal(line);
  }

  private async jump(direction: "older" | "newer"): Promise<void> {
    await this.opening;
    await this.finder.jump(direction);
  }

  private row(line: LogLine): HTMLElement {
    return logRow(line, {
      times: this.controls.times,
      started: format.epoch(this.selection.single?.started),
      nameOf: (each) => this.processName(each),
      search: this.controls.search,
      isOpen: this.open.has(line.id),
      isCurrent: line.id === this.finder.current,
      toggle: ({ id }) => {
        if (!this.open.delete(id)) this.open.add(id);
        this.list.show(this.window.lines);
      },
      readWhole: (truncated) => wholeLine(this.run, this.selection.project, truncated),
      address: ({ id }) => {
        const { path, params } = route.current();
        params.set("line", id);
        return route.address(path, params);
      },
    });
  }

  /** Read the run's processes: their ranks for the controls, and their names if lines can be of several. */
  private readProcesses(): number[] {
    const processes = this.selection.single?.processes ?? [];
    const ranks = [...new Set(processes.map(({ rank }) => rank).filter((rank) => rank !== null))].sort((a, b) => a - b);
    const nameOf = (process: (typeof processes)[number]) => (process.rank === null ? (process.host ?? process.id.slice(0, 8)) : ranks.length > 1 ? `r${process.rank}` : "");
    this.names = new Map(processes.length > 1 ? processes.map((process) => [process.id, nameOf(process)]) : []);
    return ranks;
  }

  /** The rank of a line's process, or its host; "" if all lines are of one process. */
  private processName({ process }: LogLine): string {
    return this.controls.filter.rank === undefined ? (this.names.get(process) ?? "") : "";
  }

  private onLines(before: number): void {
    const { lines, loaded } = this.window;
    if (loaded) fill(this.message, ...(lines.length ? [] : [this.emptyMessage()]));
    this.list.show(lines, before);
    this.drawStatus();
    this.finder.update();
  }

  private emptyMessage(): HTMLElement {
    const place = this.window.searchedTo;
    const state = (title: string, words: string) => h("div", { class: "state" }, h("h2", {}, title), h("p", {}, words));
    if (this.filterKey === "{}") return state("No log lines yet", "Console output and records of Python's logging appear here, and so do OpenTelemetry log records of any other program.");
    return place ? state("Searching …", `No match since ${momentOf(place)}.`) : state("No matching lines", "Change the search or the filters to see other lines.");
  }

  private showError(error: unknown): void {
    fill(this.message, h("div", { class: "state", role: "alert" }, h("h2", {}, "Could not load the log"), h("p", {}, format.message(error))));
  }

  private drawStatus(): void {
    const { usage, lines, atStart, atEnd, missed, damaged, searchedTo } = this.window;
    const isLive = this.list.isStuck && atEnd;
    const words = [format.counted(usage.lines, "line"), format.bytes(usage.size)];
    if (lines.length < usage.lines && this.filterKey === "{}") words.push(`${lines.length.toLocaleString()} loaded`);
    if (damaged) words.push(`${format.counted(damaged, "line")} missing, because the store is damaged`);
    if (this.selection.runs[0]?.state === "running" && isLive) words.push("following");
    if (searchedTo) words.push(`searching, at ${momentOf(searchedTo)}`);
    setText(this.status, words.join(" · "));
    this.newest.hidden = isLive || lines.length === 0;
    setText(this.newest, missed ? `↓ ${format.counted(missed, "new line")}` : "↓ Newest");
    this.notice.hidden = usage.evicted === 0 || !atStart;
    setText(this.notice, this.notice.hidden ? "" : `${usage.evicted.toLocaleString()} older lines were deleted, because the log had too many.`);
  }

  private toNewest(): void {
    if (this.line !== null) route.change({ line: null });
    if (this.window.atEnd) this.list.toEnd();
    else void this.openAt(null);
  }

  private reveal(id: string): void {
    const index = this.window.lines.findIndex((line) => line.id === id);
    if (index < 0) return;
    this.finder.current = id;
    this.list.show(this.window.lines);
    this.list.reveal(index);
    this.drawStatus();
  }

  private async save(control: HTMLButtonElement): Promise<void> {
    control.disabled = true;
    try {
      const content = await wholeLog(this.run, this.selection.project, this.controls.filter, (line) => this.processName(line), (lines) => setText(control, `${lines.toLocaleString()} lines`));
      download(`${this.selection.single?.name || this.run}.log`, content);
      setText(control, "Download");
    } catch (error) {
      setText(control, format.message(error));
      setTimeout(() => setText(control, "Download"), SHOWN_MS);
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
