// All projects; where there are none, how to make one.

import * as api from "../api";
import { fill, h } from "../dom";
import * as format from "../format";
import { address } from "../route";
import { stateBadge } from "./badge";
import { firstVisit } from "./welcome";
import type { Context, View } from "./view";

const AGAIN_MS = 5000;

export class Projects implements View {
  readonly element = h("div", { class: "projects" }, h("p", { class: "state", role: "status" }, "Loading …"));
  private timer = 0;
  private shown = "";

  constructor(private readonly context: Context) {
    context.title();
    void this.load();
  }

  apply(): void {}

  close(): void {
    clearTimeout(this.timer);
    this.timer = -1;
  }

  private async load(): Promise<void> {
    try {
      const projects = await api.projects();
      const text = JSON.stringify(projects);
      if (text !== this.shown) await this.draw(projects);
      this.shown = text;
    } catch (error) {
      this.shown = "";
      fill(this.element, this.context.onError(error, () => void this.load()));
      if (error instanceof api.ApiError && error.status !== 0) return;
    }
    if (this.timer !== -1) this.timer = window.setTimeout(() => void this.load(), AGAIN_MS);
  }

  private async draw(projects: api.Project[]): Promise<void> {
    if (projects.length === 0) {
      fill(this.element, firstVisit());
      return;
    }
    // What needs a person now comes before everything else.
    const { runs } = await api.runs({
      filter: 'state in ("failed", "crashed", "stalled", "running")',
      sort: "-last_time",
      limit: 12,
      fields: "",
    });
    const ordered = [...projects].sort((a, b) => format.epoch(b.last_time) - format.epoch(a.last_time));
    const cards = ordered.map((project) =>
      h(
        "a",
        { class: "project", href: address(["p", project.name]) },
        h("h3", {}, project.name),
        h("p", {}, `${format.count(project.runs)} ${project.runs === 1 ? "run" : "runs"}`),
        h("p", { class: "muted" }, `last heard ${format.ago(format.epoch(project.last_time))}`),
      ),
    );
    fill(
      this.element,
      h("h1", {}, "Projects"),
      h("div", { class: "grid" }, ...cards),
      runs.length > 0 && h("h2", {}, "Under way, or in need of a look"),
      runs.length > 0 && h("ul", { class: "attention" }, ...runs.map(item)),
    );
  }
}

function item(run: api.Run): HTMLElement {
  return h(
    "li",
    {},
    stateBadge(run),
    h("a", { href: address(["p", run.project, "runs", run.id]) }, run.name || run.id),
    h("span", { class: "muted" }, run.project),
    h("span", { class: "muted" }, `heard ${format.ago(format.epoch(run.last_time))}`),
  );
}
