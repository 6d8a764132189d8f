// The list of runs next to their charts: colour, name, state and value at the pointer; hides, shows and groups runs.

import { button, fill, h, setOptions, setText } from "../base/dom";
import * as format from "../base/format";
import * as route from "../base/route";
import type { Reading } from "../chart/plot";
import type { RunSelection } from "./runSelection";

export class RunList {
  readonly element = h("aside", { class: "runlist", "aria-label": "Runs" });
  private readonly title = h("h2", {});
  private readonly toggle = button("", () => route.change({ hide: this.hidden.size ? null : route.join(this.selection.ids) }));
  private readonly group = h("select", { "aria-label": "Group by", on: { change: () => route.change({ group: this.group.value }) } });
  private readonly rows = h("ul", {});
  private readonly values = new Map<string, HTMLElement>();
  private nearest: Element | null = null;
  private readings: Reading[] = [];
  private hidden = new Set<string>();
  private shape = "";

  constructor(private readonly selection: RunSelection) {
    this.element.append(h("header", {}, this.title, h("label", {}, "group by ", this.group), this.toggle), this.rows);
  }

  update(params: URLSearchParams): void {
    const hidden = new Set(route.list(params, "hide"));
    this.hidden = hidden;
    setOptions(this.group, this.groups());
    this.group.value = params.get("group") ?? "";
    const selected = this.selection.selectedRuns(params);
    const states = this.selection.runs.map(({ state }) => state);
    const shape = JSON.stringify([selected.map(({ id, name, color, group }) => [id, name, color, group]), [...hidden], states]);
    if (shape === this.shape) return;
    this.shape = shape;
    this.values.clear();
    const rows = selected.map((run, position) => {
      const value = h("span", { class: "value" });
      this.values.set(run.group ?? run.name, value);
      const show = h("input", {
        type: "checkbox",
        checked: !hidden.has(run.id),
        "aria-label": `Show ${run.name}`,
        on: {
          change: () => {
            if (!hidden.delete(run.id)) hidden.add(run.id);
            route.change({ hide: route.join(hidden) });
          },
        },
      });
      const color = h("input", {
        type: "color",
        value: hex(run.color),
        class: "color",
        "aria-label": `Color of ${run.name}`,
        on: { change: (event) => this.recolor(params, run.id, (event.target as HTMLInputElement).value) },
      });
      const name = h("a", { href: route.address(["p", this.selection.project, "runs", run.id]), title: run.group ?? run.name }, run.name);
      return h("li", { class: hidden.has(run.id) ? "hidden" : "" }, show, color, h("span", { class: `dot ${states[position]}`, title: states[position], role: "img", "aria-label": states[position] }), name, value);
    });
    fill(this.title, `${selected.length} runs`);
    fill(this.toggle, hidden.size === 0 ? "Hide all" : "Show all");
    fill(this.rows, ...rows);
    this.showReadings(this.readings);
  }

  /** Fields that runs can be grouped by. */
  private groups(): [string, string][] {
    const fields = new Set<string>(["group", "job_type", "state"]);
    for (const run of this.selection.runs) for (const key of format.flatten(run.config).keys()) fields.add(`config.${key}`);
    return [["", "none"], ...[...fields].map((name): [string, string] => [name, name === "job_type" ? "job type" : name.replace(/^config\./, "")])];
  }

  /** Show the values of the curves at the pointer. */
  showReadings(readings: Reading[]): void {
    this.readings = readings;
    const byLabel = new Map(readings.map(({ label, y }) => [label, y]));
    for (const [name, element] of this.values) {
      const value = byLabel.get(name);
      setText(element, value === undefined ? "" : format.number(value));
    }
    const nearestReading = readings.find(({ nearest }) => nearest);
    const row = (nearestReading && this.values.get(nearestReading.label)?.closest("li")) ?? null;
    if (row === this.nearest) return;
    this.nearest?.classList.remove("nearest");
    row?.classList.add("nearest");
    this.nearest = row;
  }

  private recolor(params: URLSearchParams, id: string, color: string): void {
    const others = route.list(params, "colors").filter((pair) => !pair.startsWith(`${id}~`));
    route.change({ colors: route.join([...others, `${id}~${color.slice(1)}`]) });
  }
}

let context: CanvasRenderingContext2D | null = null;

/** Convert a colour to #rrggbb, which colour inputs require. */
export function hex(color: string): string {
  context ??= document.createElement("canvas").getContext("2d");
  if (!context) return "#888888";
  context.fillStyle = color;
  return String(context.fillStyle).slice(0, 7);
}
