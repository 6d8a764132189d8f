// The controls above a log: search, filters, and the looks of lines. All of them are in the address.

import { type Child, h, iconButton, setOptions, setText, setValue } from "../base/dom";
import * as route from "../base/route";
import type { LogFilter } from "../data/logs";
import type { TimeStyle } from "./logRow";

const SEARCH_MS = 250;
/** Width of the window below which lines wrap by default. */
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

export class LogControls {
  readonly element: HTMLElement;
  private params = new URLSearchParams();
  private searchTimer = 0;
  private readonly field = h("input", { type: "search", class: "search", placeholder: "Search the log", "aria-label": "Search the log", "data-search": true, on: { input: () => this.onInput(), keydown: (event) => this.onKey(event) } });
  private readonly count = h("output", { class: "muted", "aria-live": "polite" });
  private readonly older = iconButton("up", "Previous match (Enter)", () => this.jump("older"));
  private readonly newer = iconButton("down", "Next match (Shift+Enter)", () => this.jump("newer"));
  private readonly only = h("input", { type: "checkbox", on: { change: () => route.change({ only: this.only.checked ? "1" : null }) } });
  private readonly level = choice("Lowest level", "level", LEVELS);
  private readonly stream = choice("Source", "stream", STREAMS);
  private readonly rank = choice("Rank", "rank", []);
  private readonly timeChoice = choice("Times", "times", TIMES, "clock");
  private readonly wrap = h("input", { type: "checkbox", on: { change: () => route.change({ wrap: this.wrap.checked ? "1" : "0" }) } });

  constructor(
    private readonly jump: (direction: "older" | "newer") => void,
    ...tools: Child[]
  ) {
    const options = h(
      "div",
      { class: "log-options" },
      h("label", { class: "check", title: "Hide lines that do not match" }, this.only, "only matches"),
      this.level,
      this.rank,
      this.stream,
      this.timeChoice,
      h("label", { class: "check" }, this.wrap, "wrap"),
      h("span", { class: "log-tools" }, ...tools),
    );
    this.element = h("div", { class: "controls", role: "search" }, h("span", { class: "find" }, this.field, this.count, this.older, this.newer), options);
  }

  get search(): string {
    return this.params.get("q") ?? "";
  }

  get times(): TimeStyle {
    return TIMES.find(([style]) => style === this.params.get("times"))?.[0] ?? "clock";
  }

  get isWrapped(): boolean {
    const wrap = this.params.get("wrap");
    return wrap === null ? innerWidth < NARROW : wrap === "1";
  }

  get filter(): LogFilter {
    const number = (name: string) => (/^\d+$/.test(this.params.get(name) ?? "") ? Number(this.params.get(name)) : undefined);
    const [severity, rank, stream] = [number("level"), number("rank"), this.params.get("stream")];
    return {
      ...(severity ? { severity } : {}),
      ...(rank !== undefined ? { rank } : {}),
      ...(stream === "stdout" || stream === "stderr" ? { stream } : {}),
      ...(this.search && this.params.get("only") === "1" ? { search: this.search } : {}),
    };
  }

  apply(params: URLSearchParams, ranks: number[]): void {
    this.params = params;
    setValue(this.field, this.search);
    this.only.checked = params.get("only") === "1";
    this.wrap.checked = this.isWrapped;
    for (const select of [this.level, this.stream, this.timeChoice]) select.value = params.get(select.name) ?? select.dataset.default ?? "";
    for (const arrow of [this.older, this.newer]) arrow.disabled = !this.search;
    this.setRanks(ranks);
  }

  setRanks(ranks: number[]): void {
    setOptions(this.rank, [["", "all ranks"], ...ranks.map((rank): [string, string] => [String(rank), `rank ${rank}`])]);
    this.rank.value = this.params.get("rank") ?? "";
    this.rank.hidden = ranks.length < 2;
  }

  /** Show the number of matches, or what a search is doing. */
  setCount(words: string): void {
    setText(this.count, words);
  }

  close(): void {
    clearTimeout(this.searchTimer);
  }

  private onInput(): void {
    clearTimeout(this.searchTimer);
    this.searchTimer = window.setTimeout(() => route.change({ q: this.field.value }), SEARCH_MS);
  }

  private onKey(event: KeyboardEvent): void {
    if (event.key !== "Enter") return;
    event.preventDefault();
    clearTimeout(this.searchTimer);
    route.change({ q: this.field.value });
    this.jump(event.shiftKey ? "newer" : "older");
  }
}

function choice(label: string, parameter: string, options: [string, string][], normal = ""): HTMLSelectElement {
  const select = h("select", { "aria-label": label, name: parameter, "data-default": normal, on: { change: () => route.change({ [parameter]: select.value === normal ? null : select.value }) } });
  setOptions(select, options);
  return select;
}
