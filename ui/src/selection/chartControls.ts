// Controls of charts: search, x axis, smoothing, scales, ranks. Their state is in the address.

import { button, fill, h, setOptions, setValue } from "../base/dom";
import * as format from "../base/format";
import * as route from "../base/route";
import { SYSTEM_METRIC } from "../data/fields";
import { searchField } from "../widgets/searchField";
import { MetricPicker } from "./metricPicker";
import type { RunSelection } from "./runSelection";

const AXES = { step: "step", relative: "relative time", time: "time" };
/** Number of metrics that the list of axes contains; others are found by a search. */
const MAX_LISTED = 200;
const OTHER = "other";

export class ChartControls {
  readonly element = h("div", { class: "controls", role: "search" });
  private readonly search = searchField("charts");
  private readonly axis = h("select", { class: "axis", "aria-label": "x axis", on: { change: () => this.choose(this.axis.value) } });
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
  private readonly ranksLabel = h("label", {}, "ranks ", this.ranks);
  private readonly out = button("", () => route.change({ from: null, to: null }), { class: "chip" });
  private readonly picker: MetricPicker;
  private params = new URLSearchParams();
  private readonly attempts = this.check("all attempts", "Show each attempt as a line, with the steps that later attempts repeat", (checked) => ({ attempts: checked ? "all" : null }));
  private readonly parents = this.check("parent's curve", "Show the curve of the run from which a run was forked, up to the fork", (checked) => ({ parents: checked ? null : "0" }));
  private readonly toggles = ["xlog", "ylog", "clip"].map((name) => {
    const box = h("input", { type: "checkbox", on: { change: () => route.change({ [name]: box.checked ? "1" : null }) } });
    return [name, box] as const;
  });

  constructor(private readonly selection: RunSelection) {
    this.picker = new MetricPicker("Choose a metric as axis", selection.project, selection.ids, (name) => this.choose(name ? `metric:${name}` : (this.params.get("x") ?? this.fallback)));
    const names = ["log x", "log y", "ignore outliers"];
    setOptions(this.ranks, Object.entries({ range: "median and range", each: "each", first: "first only" }));
    this.element.append(
      this.search,
      h("label", {}, "x ", this.axis),
      h("label", { title: "Exponential moving average; the raw curve stays visible behind it" }, "smooth ", this.smoothing, this.weight),
      ...this.toggles.map(([, box], position) => h("label", { class: "check" }, box, names[position])),
      this.ranksLabel,
      this.attempts.label,
      this.parents.label,
      this.out,
      this.picker.element,
    );
  }

  private check(name: string, title: string, change: (checked: boolean) => Record<string, string | null>): { box: HTMLInputElement; label: HTMLElement } {
    const box = h("input", { type: "checkbox", on: { change: () => route.change(change(box.checked)) } });
    return { box, label: h("label", { class: "check", title }, box, name) };
  }

  private choose(x: string): void {
    if (x === OTHER) this.picker.open();
    else route.change({ x: x === this.fallback ? null : x, from: null, to: null });
    // The address may be the same as before.
    if (x !== OTHER) this.axis.value = x;
  }

  update(params: URLSearchParams, axis: string): void {
    this.params = params;
    setValue(this.search, params.get("q") ?? "");
    this.fallback = axis;
    const x = params.get("x") || axis;
    setOptions(this.axis, this.axes(x));
    this.axis.value = x;
    setValue(this.smoothing, params.get("s") ?? "0");
    this.weight.value = Number(params.get("s") ?? 0) ? format.number(Number(params.get("s"))) : "off";
    for (const [name, box] of this.toggles) box.checked = params.has(name);
    this.ranksLabel.hidden = this.selection.runs.every(({ processes }) => processes < 2);
    this.ranks.value = params.get("ranks") ?? "range";
    this.attempts.label.hidden = this.selection.runs.every(({ attempt }) => attempt < 2);
    this.attempts.box.checked = params.get("attempts") === "all";
    this.parents.label.hidden = this.selection.runs.every(({ parent }) => parent === null);
    this.parents.box.checked = params.get("parents") !== "0";
    this.out.hidden = !params.has("from");
    if (params.has("from")) {
      const range = ["from", "to"].map((name) => format.number(Number(params.get(name))));
      fill(this.out, x === "time" ? "zoomed ✕" : `${range.join(" to ")} ✕`);
      this.out.setAttribute("aria-label", "Zoom out");
    }
  }

  /** The axes to choose from: metrics that have been read, and a search if there are others. */
  private axes(chosen: string): [string, string][] {
    const { metrics, tree } = this.selection;
    const names = new Set<string>();
    for (const { kind, name } of metrics) {
      if (names.size >= MAX_LISTED) break;
      if ((kind === "gauge" || kind === "sum") && !SYSTEM_METRIC.test(name)) names.add(name);
    }
    if (chosen.startsWith("metric:")) names.add(chosen.slice("metric:".length));
    const isAll = tree.isComplete && names.size >= metrics.size;
    return [
      ...Object.entries(AXES),
      ...[...names].sort().map((name): [string, string] => [`metric:${name}`, name]),
      ...(isAll ? [] : [[OTHER, "other metric …"] as [string, string]]),
    ];
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

