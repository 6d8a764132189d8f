// Controls of charts: search, x axis, smoothing, scales, ranks. Their state is in the address.

import { button, fill, h, setOptions } from "../base/dom";
import * as format from "../base/format";
import * as route from "../base/route";
import type { RunSelection } from "./runSelection";

const AXES = { step: "step", relative: "relative time", time: "time" };

export class ChartControls {
  readonly element = h("div", { class: "controls", role: "search" });
  private readonly search = h("input", {
    type: "search",
    "data-search": true,
    placeholder: "Search charts (regular expression)",
    "aria-label": "Search charts (regular expression)",
    class: "search",
    on: { input: () => route.change({ q: this.search.value }) },
  });
  private readonly axis = h("select", { class: "axis", "aria-label": "x axis", on: { change: () => route.change({ x: this.axis.value === this.fallback ? null : this.axis.value, from: null, to: null }) } });
  /** The x axis if the address names none. */
  private fallback = "step";
  private readonly smoothing = h("input", {
    type: "range",
    "aria-label": "Smoothing",
    min: 0,
    max: 0.999,
    step: 0.001,
    on: { input: () => this.smooth() },
  });
  private readonly weight = h("output", {});
  private readonly ranks = h("select", { "aria-label": "Ranks", on: { change: () => route.change({ ranks: this.ranks.value }) } });
  private readonly out = button("", () => route.change({ from: null, to: null }), { class: "chip" });
  private readonly toggles: [string, HTMLInputElement][];
  private readonly ranksLabel: HTMLElement;

  constructor(private readonly selection: RunSelection) {
    this.toggles = ["xlog", "ylog", "clip"].map((name) => [
      name,
      h("input", { type: "checkbox", on: { change: (event) => route.change({ [name]: (event.target as HTMLInputElement).checked ? "1" : null }) } }),
    ]);
    const names = ["log x", "log y", "ignore outliers"];
    fill(
      this.ranks,
      ...Object.entries({ range: "median and range", each: "each", first: "first only" }).map(([value, label]) => h("option", { value }, label)),
    );
    this.ranksLabel = h("label", {}, "ranks ", this.ranks);
    this.element.append(
      this.search,
      h("label", {}, "x ", this.axis),
      h("label", { title: "Exponential moving average; the raw curve stays visible behind it" }, "smooth ", this.smoothing, this.weight),
      ...this.toggles.map(([, box], position) => h("label", { class: "check" }, box, names[position])),
      this.ranksLabel,
      this.out,
    );
  }

  update(params: URLSearchParams, axis: string): void {
    set(this.search, params.get("q") ?? "");
    this.fallback = axis;
    const x = params.get("x") || axis;
    const axes = this.selection.metrics.filter(({ kind }) => kind === "gauge" || kind === "sum").map(({ name }) => `metric:${name}`);
    const names = new Set(axes);
    setOptions(this.axis, [
      ...Object.entries(AXES),
      ...[...names].filter((name) => !/^metric:(system|process|hw|container|tensormeter)\./.test(name)).map((name): [string, string] => [name, name.slice(7)]),
    ]);
    this.axis.value = x;
    set(this.smoothing, params.get("s") ?? "0");
    this.weight.value = Number(params.get("s") ?? 0) ? format.number(Number(params.get("s"))) : "off";
    for (const [name, box] of this.toggles) box.checked = params.has(name);
    this.ranksLabel.hidden = this.selection.runs.every(({ processes }) => processes < 2);
    this.ranks.value = params.get("ranks") ?? "range";
    this.out.hidden = !params.has("from");
    if (params.has("from")) {
      const range = ["from", "to"].map((name) => format.number(Number(params.get(name))));
      fill(this.out, x === "time" ? "zoomed ✕" : `${range.join(" to ")} ✕`);
      this.out.setAttribute("aria-label", "Zoom out");
    }
  }

  /** Show another default, for panes that have one. */
  setRanks(ranks: string): void {
    this.ranks.value = ranks;
  }

  private smooth(): void {
    const weight = Number(this.smoothing.value);
    route.change({ s: weight > 0 ? String(weight) : null });
  }
}

/** Set the value, unless the user is typing in the field. */
function set(input: HTMLInputElement, value: string): void {
  if (document.activeElement !== input || input.type === "range") input.value = value;
}

