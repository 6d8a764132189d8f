// The runs of a project: filter, sort, group, choose columns, select runs to compare. The address holds all of this state.

import { button, fill, fillOnChange, h, iconButton, setText } from "../base/dom";
import * as format from "../base/format";
import * as route from "../base/route";
import { lineColor, onTheme } from "../base/theme";
import * as api from "../data/api";
import { SYSTEM_METRIC, fieldValue } from "../data/fields";
import * as listing from "../data/metrics";
import { ColumnChooser } from "../table/columnChooser";
import { ColumnMenu } from "../table/columnMenu";
import { type ColumnContext, column, nameColumns, quoteField, shortLabel } from "../table/columns";
import { FilterBar } from "../table/filterBar";
import { Grid, ROW } from "../table/grid";
import { type Heading, type Item, type Request, Rows, isHeading } from "../table/rows";
import { SUGGESTED_METRICS, suggestedColumns } from "../table/suggested";
import { LATE_FILTER, LOST_FILTER, drawBanners, runBanners } from "../widgets/banner";
import { welcome } from "../widgets/welcome";
import type { PageContext, Page } from "./page";

const REFRESH_MS = 5000;
/** Interval at which the banners for lost and late data are refreshed. */
const BANNERS_REFRESH_MS = 30_000;
/** Number of runs that each banner names. */
const MAX_BANNER_RUNS = 5;
/** Number of runs whose charts are compared if none is selected. */
const MAX_COMPARED = 100;
/** Number of newest runs whose fields are suggested as columns, and of their metrics. */
const SAMPLE = 5;
const MAX_SUGGESTED = 100;

export class RunsPage implements Page {
  readonly element = h("div", { class: "runs" });
  private params = new URLSearchParams();
  private readonly grid: Grid<Item>;
  private readonly rows = new Rows(
    () => this.onRows(),
    (error) => this.onError(error),
  );
  private readonly filter: FilterBar;
  private readonly menu = new ColumnMenu({
    filterBy: (key) => this.filter.startClause(key),
    hide: (key) => this.setColumns(this.columns.filter((other) => other !== key)),
  });
  private readonly chooser: ColumnChooser;
  private readonly problem = h("p", { class: "problem", role: "alert" });
  private readonly banners = h("div", { class: "banners" });
  private bannersReadAt = 0;
  private readonly status = h("p", { class: "muted", role: "status" }, "Loading …");
  private readonly actions = h("div", { class: "actions" });
  private readonly empty = h("div", {});
  private loaded = "";
  private shape = "";
  private timer = 0;
  private fields: string[] = [];
  private sample: api.Run[] = [];
  private columns: string[] = [];
  private selected: string[] = [];
  private readonly offTheme: () => void;

  constructor(
    private readonly context: PageContext,
    private readonly project: string,
  ) {
    context.title(project);
    this.filter = new FilterBar(project, () => this.fields);
    this.chooser = new ColumnChooser(
      project,
      () => this.fields,
      (columns) => this.setColumns(columns),
    );
    this.grid = new Grid<Item>(`Runs of ${project}`, {
      need: (first, last) => this.rows.need(first, last),
      header: ({ key }, anchor) => this.menu.open(key, anchor),
      open: (row) => (isHeading(row) ? this.fold(row) : route.go(["p", project, "runs", row.id])),
      select: (row) => (isHeading(row) ? this.fold(row) : this.toggle(row)),
      isSelected: (row) => !isHeading(row) && this.selected.includes(row.id),
      heading: (row) => (isHeading(row) ? this.heading(row) : null),
    });
    const choose = iconButton("columns", "Choose columns", () => this.chooser.open(this.columns));
    choose.append("Columns");
    choose.classList.add("wide");
    this.element.append(
      h("div", { class: "controls" }, this.filter.field, this.filter.completions, choose, this.actions),
      this.problem,
      this.banners,
      this.filter.chips,
      this.empty,
      this.grid.element,
      h("footer", {}, this.status),
      this.menu.element,
      this.chooser.element,
    );
    this.offTheme = onTheme(() => this.grid.refresh());
    void this.begin();
  }

  apply(params: URLSearchParams): void {
    this.params = params;
    this.selected = route.list(params, "selected");
    this.filter.update(params);
    this.columns = params.has("columns") ? route.list(params, "columns") : suggestedColumns(this.sample, this.fields);
    this.chooser.update(this.columns);
    const shape = JSON.stringify([this.columns, params.get("pin"), params.get("sort"), this.numbers]);
    if (shape !== this.shape) {
      this.shape = shape;
      const context = this.columnContext();
      const ordered = [...this.columns].sort((a, b) => Number(context.pinned.has(b)) - Number(context.pinned.has(a)));
      this.grid.setColumns([...nameColumns(context), ...ordered.map((key) => column(key, context))]);
    }
    const request = this.request();
    if (JSON.stringify(request) !== this.loaded && this.fields.length + this.sample.length > 0) {
      this.loaded = JSON.stringify(request);
      void this.rows.load(request);
    }
    this.drawActions();
    this.grid.refresh();
  }

  onKey(event: KeyboardEvent): void {
    if (event.key === "c") this.compare();
    else if (event.key === "n" || event.key === "#") {
      const cell = event.key === "n" ? '.editable[aria-label^="Edit notes"]' : ".edit";
      this.grid.element.querySelector<HTMLElement>(`.row.active:not([hidden]) ${cell}`)?.click();
      event.preventDefault();
    }
    else if (["ArrowDown", "ArrowUp", "j", "k"].includes(event.key) && event.target === document.body) this.grid.element.focus();
  }

  close(): void {
    clearTimeout(this.timer);
    this.timer = -1;
    this.rows.close();
    this.grid.close();
    this.offTheme();
  }

  /** Read the fields and the banners, then show the table. */
  private async begin(): Promise<void> {
    try {
      // Loaded together, so that a late banner does not move the table under the pointer.
      const [total] = await Promise.all([this.readFields(), this.refreshBanners()]);
      fill(this.empty, total === 0 ? welcome(this.project) : null);
      this.element.classList.toggle("nothing", total === 0);
      this.apply(route.current().params);
      this.schedule(total === 0);
    } catch (error) {
      fill(this.empty, this.context.onError(error, () => void this.begin()));
      this.element.classList.add("nothing");
    }
  }

  /** Read the fields of the newest runs, from which columns are suggested. Returns the number of runs. */
  private async readFields(): Promise<number> {
    const { runs, total } = await api.runs({ project: this.project, limit: SAMPLE, fields: "config" });
    const fields = new Set<string>();
    for (const run of runs) for (const key of format.flatten(run.config).keys()) fields.add(`config.${key}`);
    if (runs.length) for (const name of await this.readMetrics(runs.map(({ id }) => id))) fields.add(`summary.${name}`);
    this.sample = runs;
    this.fields = [...fields].sort();
    return total;
  }

  /** Read names of metrics that may be suggested. */
  private async readMetrics(ids: string[]): Promise<string[]> {
    const list = (search: string) => listing.metrics(this.project, ids, { pane: "charts", search, limit: MAX_SUGGESTED });
    const page = await list("");
    const more = page.next === null ? [] : (await list(SUGGESTED_METRICS)).metrics;
    return [...page.metrics, ...more].map(({ name }) => name);
  }

  /** Refresh the visible rows, and the fields as long as no metrics have been logged. */
  private async refresh(): Promise<void> {
    const { scrollTop, clientHeight } = this.grid.element;
    await this.rows.refresh(Math.floor(scrollTop / ROW), Math.ceil((scrollTop + clientHeight) / ROW));
    this.grid.refresh();
    void this.refreshBanners();
    if (this.fields.some((key) => key.startsWith("summary.") && !SYSTEM_METRIC.test(key.slice("summary.".length)))) return;
    try {
      await this.readFields();
      if (this.timer === -1) return;
      this.apply(this.params);
    } catch {
      // Retried at the next refresh.
    }
  }

  private async refreshBanners(): Promise<void> {
    if (Date.now() - this.bannersReadAt < BANNERS_REFRESH_MS) return;
    this.bannersReadAt = Date.now();
    const search = (filter: string) => api.runs({ project: this.project, filter, limit: MAX_BANNER_RUNS, fields: "" });
    try {
      const [lost, late] = await Promise.all([search(LOST_FILTER), search(LATE_FILTER)]);
      drawBanners(this.banners, runBanners(this.project, lost.runs, late.runs, { lost: lost.total, late: late.total }));
    } catch {
      // The table shows the error.
    }
  }

  private schedule(again = false): void {
    if (this.timer === -1) return;
    clearTimeout(this.timer);
    this.timer = window.setTimeout(async () => {
      if (again) return void this.begin();
      if (!document.hidden) await this.refresh();
      this.schedule();
    }, REFRESH_MS);
  }

  private request(): Request {
    const group = this.params.get("group") ?? "";
    const keys = [...this.columns, group].filter((key) => key.startsWith("config.") || key.startsWith("summary."));
    // Statistics of a metric are part of its summary.
    const fields = keys.map((key) => key.replace(/^(summary\..+)\.(value|last|min|max|mean|count|last_step)$/, "$1"));
    return {
      project: this.project,
      filter: this.params.get("filter") ?? "",
      sort: this.sort,
      group,
      fields: [...new Set(fields.map(quoteField))].join(","),
      pinned: route.list(this.params, "pinned"),
    };
  }

  private get sort(): string {
    return this.params.get("sort") ?? "-started";
  }

  /** Keys of the columns that hold numbers in the newest runs. */
  private get numbers(): string[] {
    return this.columns.filter((key) => this.sample.some((run) => typeof fieldValue(run, key) === "number"));
  }

  private columnContext(): ColumnContext {
    return {
      project: this.project,
      sort: this.sort,
      pinned: new Set(route.list(this.params, "pin")),
      numbers: new Set(this.numbers),
      selectedColor: (id) => {
        const position = this.selected.indexOf(id);
        return position < 0 ? null : lineColor(position);
      },
      toggle: (run) => this.toggle(run),
      filterBy: (clause) => this.filter.add(clause),
      changed: (run, change) => void this.change(run, change),
    };
  }

  private async change(run: api.Run, change: api.RunChange): Promise<void> {
    const before = { ...run };
    // The rows may have been reloaded while the user was typing.
    const assign = (values: Partial<api.Run>) => {
      for (const row of this.rows.loadedRuns()) if (row.id === run.id) Object.assign(row, values);
      this.grid.refresh();
    };
    assign(change);
    try {
      await api.changeRun(run.id, run.project, change);
      this.problem.textContent = "";
    } catch (error) {
      assign(Object.fromEntries(Object.keys(change).map((key) => [key, before[key as keyof api.Run]])));
      this.problem.textContent = `Not saved: ${format.message(error)}`;
    }
  }

  private toggle(run: api.Run): void {
    const others = this.selected.filter((id) => id !== run.id);
    route.change({ selected: route.join(others.length < this.selected.length ? others : [...this.selected, run.id]) });
  }

  private compare(): void {
    if (this.selected.length) route.go(["p", this.project, "runs", this.selected.join(",")]);
  }

  private setColumns(columns: string[] | null): void {
    route.change({ columns: columns && (route.join(columns) || " ") });
  }

  private onRows(): void {
    this.problem.textContent = "";
    this.grid.setRows(this.rows.total, (index) => this.rows.at(index));
    const { matches } = this.rows;
    const words = `${format.counted(matches, "run")}${this.params.has("filter") ? (matches === 1 ? " matches" : " match") : ""}`;
    setText(this.status, words);
    if (this.sample.length && this.element.classList.toggle("unmatched", matches === 0)) {
      fill(
        this.empty,
        h("div", { class: "state" }, h("h2", {}, "No matching runs"), h("p", {}, button("Clear filter", () => route.change({ filter: null })))),
      );
    } else if (this.sample.length) fill(this.empty);
    this.drawActions();
  }

  private onError(error: unknown): void {
    this.problem.textContent = format.message(error);
    if (this.rows.matches === 0) this.status.textContent = "";
    if (!(error instanceof api.ApiError && error.status === 400)) this.loaded = "";
  }

  private drawActions(): void {
    const { selected } = this;
    const n = Math.min(this.rows.matches, MAX_COMPARED);
    fillOnChange(this.actions, [selected.length, n, this.rows.matches === n], () => [
      selected.length
        ? button(`Compare ${selected.length}`, () => this.compare(), { class: "primary" })
        : button(`Charts of ${n === this.rows.matches ? "all" : "the first"} ${n}`, () => this.compareFirst(), { disabled: n === 0 }),
      selected.length > 0 && button("Pin", () => this.pinSelected(), { title: "Keep the selected runs on top" }),
      selected.length > 0 && button("Clear", () => route.change({ selected: null }), { "aria-label": "Clear selection" }),
    ]);
  }

  private compareFirst(): void {
    const ids = new Set<string>();
    for (const { id } of this.rows.loadedRuns()) if (ids.size < MAX_COMPARED) ids.add(id);
    route.go(["p", this.project, "runs", [...ids].join(",")]);
  }

  private pinSelected(): void {
    const pinned = new Set(route.list(this.params, "pinned"));
    const all = this.selected.every((id) => pinned.has(id));
    for (const id of this.selected) all ? pinned.delete(id) : pinned.add(id);
    route.change({ pinned: route.join(pinned) });
  }

  private fold(row: Heading): void {
    this.rows.fold(row);
    this.grid.refresh();
  }

  private heading(row: Heading): HTMLElement {
    const group = this.params.get("group") ?? "";
    const means = this.columns
      .filter((key) => key.startsWith("summary."))
      .slice(0, 3)
      .map((key) => {
        const metric = key.slice("summary.".length);
        const values = row.runs.map((run) => api.toNumber(run.summary[metric]?.value as api.JsonNumber)).filter(Number.isFinite);
        const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
        const share = values.length < row.runs.length ? ` of ${format.counted(values.length, "run")}` : "";
        return values.length ? `mean ${shortLabel(key)} ${format.number(mean)}${share}` : "";
      });
    const toggle = button(`${row.open ? "▾" : "▸"} ${shortLabel(group)} = ${row.heading || "–"}`, () => this.fold(row), {
      "aria-expanded": String(row.open),
      tabindex: -1,
    });
    return h("div", { class: "heading" }, toggle, h("span", { class: "muted" }, [format.counted(row.runs.length, "run"), ...means].filter(Boolean).join(" · ")));
  }
}
