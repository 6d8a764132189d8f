// The list of projects, or the welcome text if there are none.

import { arrange, fill, h } from "../base/dom";
import * as format from "../base/format";
import { remember } from "../base/remember";
import { address } from "../base/route";
import * as api from "../data/api";
import { stateBadge } from "../widgets/badge";
import { welcome } from "../widgets/welcome";
import type { PageContext, Page } from "./page";

const REFRESH_MS = 5000;

export class Projects implements Page {
  readonly element = h("div", { class: "projects" }, h("p", { class: "state", role: "status" }, "Loading …"));
  private readonly title = h("h1", {}, "Projects");
  private readonly cards = h("div", { class: "grid" });
  private readonly heading = h("h2", {}, "Running, or in need of attention");
  private readonly attention = h("ul", { class: "attention" });
  private readonly links = new Map<string, HTMLElement>();
  private timer = 0;
  private drawnProjects = "";

  constructor(private readonly context: PageContext) {
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
      if (text !== this.drawnProjects) await this.draw(projects);
      this.drawnProjects = text;
    } catch (error) {
      this.drawnProjects = "";
      fill(this.element, this.context.onError(error, () => void this.load()));
      if (error instanceof api.ApiError && error.status !== 0) return;
    }
    if (this.timer !== -1) this.timer = window.setTimeout(() => void this.load(), REFRESH_MS);
  }

  private async draw(projects: api.Project[]): Promise<void> {
    if (projects.length === 0) {
      fill(this.element, welcome());
      return;
    }
    // Runs with problems come first. Many running ones must not displace them.
    const latest = (filter: string) => api.runs({ filter, sort: "-last_time", limit: 12, fields: "" });
    const lists = await Promise.all([latest('state in ("failed", "crashed", "stalled")'), latest('state = "running"')]);
    const runs = lists.flatMap((list) => list.runs);
    const ordered = [...projects].sort((a, b) => format.epoch(b.last_time) - format.epoch(a.last_time));
    arrange(
      this.cards,
      ordered.map((project) => this.card(project)),
    );
    arrange(this.attention, runs.map((run) => this.item(run)));
    const parts = [this.title, this.cards, ...(runs.length ? [this.heading, this.attention] : [])];
    arrange(this.element, parts);
  }

  /** Create or update the card of a project. Elements are reused, so they keep the focus. */
  private card({ name, runs, last_time: lastTime }: api.Project): HTMLElement {
    const link = remember(this.links, name, () => h("a", { class: "project", href: address(["p", name]) }));
    const words = `${format.count(runs)} ${runs === 1 ? "run" : "runs"}`;
    fill(link, h("h3", {}, name), h("p", {}, words), h("p", { class: "muted" }, `last update ${format.ago(format.epoch(lastTime))}`));
    return link;
  }

  private item(run: api.Run): HTMLElement {
    const link = remember(this.links, JSON.stringify([run.project, run.id]), () => h("a", { href: address(["p", run.project, "runs", run.id]) }));
    link.textContent = run.name || run.id;
    const updated = h("span", { class: "muted" }, `updated ${format.ago(format.epoch(run.last_time))}`);
    const line = (link.parentElement as HTMLLIElement | null) ?? h("li", {}, link);
    arrange(line, [stateBadge(run), link, h("span", { class: "muted" }, run.project), updated]);
    return line;
  }
}
