// A project's runs: filter, sort, group, choose columns, select to compare. The address holds all of it.

import * as api from "../api";
import { button, fill, h, iconButton } from "../dom";
import * as format from "../format";
import * as route from "../route";
import { lineColor, onTheme } from "../theme";
import { BASIC_KEYS, type ColumnContext, DEFAULT, column, nameColumns, quoted, shortLabel } from "../table/columns";
import { Grid, type GridColumn } from "../table/grid";
import { type Heading, type Item, type Request, Rows, isHeading } from "../table/rows";
import { firstVisit } from "./welcome";
import type { Context, View } from "./view";

const REFRESH_MS = 5000;
const COMPLETIONS = 20;
const STATES: api.State[] = ["running", "stalled", "failed", "crashed", "preempted", "finished"];

export class RunsView implements View {
  readonly element = h("div", { class: "runs" });
  private params = new URLSearchParams();
  private readonly grid: Grid<Item>;
  private readonly rows: Rows;
  private readonly filter = h("input", {
    type: "search",
    "data-search": true,
    class: "filter",
    placeholder: 'Filter, such as: state = "running" and config.lr > 1e-4',
    "aria-label": "Filter runs",
    autocomplete: "off",
    spellcheck: "false",
    list: "fields",
    on: { change: () => route.change({ filter: this.filter.value.trim() }), input: () => this.complete() },
  });
  private readonly completions = h("datalist", { id: "fields" });
  private readonly problem = h("p", { class: "problem", role: "alert" });
  private readonly chips = h("div", { class: "chips" });
  private readonly status = h("p", { class: "muted", role: "status" }, "Loading …");
  private readonly actions = h("div", { class: "actions" });
  private readonly empty = h("div", {});
  private readonly menu = h("div", { class: "menu floating", role: "menu", popover: "auto" });
  private readonly chooser = h("dialog", { class: "chooser", "aria-label": "Columns" });
  private loaded = "";
  private shape = "";
  private timer = 0;
  private fields: string[] = [];
  private sample: api.Run[] = [];
  private columns: string[] = DEFAULT;
  private readonly offTheme: () => void;

  constructor(
    private readonly context: Context,
    private readonly project: string,
  ) {
    context.title(project);
    this.rows = new Rows(
      () => this.onRows(),
      (error) => this.onError(error),
    );
    this.grid = new Grid<Item>(`Runs of ${project}`, {
      need: (first, last) => this.rows.need(first, last),
      header: (one, anchor) => this.openMenu(one, anchor),
      open: (row) => (isHeading(row) ? this.fold(row) : route.go(["p", project, "runs", row.id])),
      select: (row) => (isHeading(row) ? this.fold(row) : this.toggle(row)),
      isSelected: (row) => !isHeading(row) && this.selected().includes(row.id),
      heading: (row) => (isHeading(row) ? this.heading(row) : null),
    });
    const choose = iconButton("columns", "Choose columns", () => this.openChooser());
    choose.append("Columns");
    choose.classList.add("wide");
    this.element.append(
      h("div", { class: "controls" }, this.filter, this.completions, choose, this.actions),
      this.problem,
      this.chips,
      this.empty,
      this.grid.element,
      h("footer", {}, this.status),
      this.menu,
      this.chooser,
    );
    this.offTheme = onTheme(() => this.grid.refresh());
    void this.begin();
  }

  apply(params: URLSearchParams): void {
    this.params = params;
    if (document.activeElement !== this.filter) this.filter.value = params.get("filter") ?? "";
    this.columns = params.has("columns") ? route.list(params, "columns") : this.suggested();
    const shape = JSON.stringify([this.columns, params.get("pin"), params.get("sort")]);
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
    this.drawChips();
    this.drawActions();
    this.grid.refresh();
  }

  onKey(event: KeyboardEvent): void {
    if (event.key === "c") this.compare();
    else if (["ArrowDown", "ArrowUp", "j", "k"].includes(event.key) && event.target === document.body) this.grid.element.focus();
  }

  close(): void {
    clearTimeout(this.timer);
    this.timer = -1;
    this.rows.close();
    this.grid.close();
    this.offTheme();
  }

  /** Learn from the newest runs which fields there are. */
  private async begin(): Promise<void> {
    try {
      const { runs, total } = await api.runs({ project: this.project, limit: 5 });
      this.sample = runs;
      const found = new Set<string>();
      for (const run of runs) {
        for (const key of format.flatten(run.config).keys()) found.add(`config.${key}`);
        for (const name of Object.keys(run.summary)) found.add(`summary.${name}`);
      }
      this.fields = [...found].sort();
      fill(this.empty, total === 0 ? firstVisit(this.project) : null);
      this.element.classList.toggle("nothing", total === 0);
      this.apply(route.current().params);
      this.schedule(total === 0);
    } catch (error) {
      fill(this.empty, this.context.onError(error, () => void this.begin()));
      this.element.classList.add("nothing");
    }
  }

  private schedule(again = false): void {
    if (this.timer === -1) return;
    clearTimeout(this.timer);
    this.timer = window.setTimeout(async () => {
      if (again) return void this.begin();
      if (!document.hidden) {
        const { scrollTop, clientHeight } = this.grid.element;
        await this.rows.refresh(Math.floor(scrollTop / 34), Math.ceil((scrollTop + clientHeight) / 34));
      }
      this.schedule();
    }, REFRESH_MS);
  }

  private request(): Request {
    const sort = this.params.get("sort") ?? "-started";
    const group = this.params.get("group") ?? "";
    const wanted = [...this.columns, group].filter((key) => key.startsWith("config.") || key.startsWith("summary."));
    // A statistic of a metric is in the metric's summary.
    const fields = wanted.map((key) => key.replace(/^(summary\..+)\.(last|min|max|mean|count|last_step)$/, "$1"));
    return {
      project: this.project,
      filter: this.params.get("filter") ?? "",
      sort,
      group,
      fields: [...new Set(fields)].join(","),
      pinned: route.list(this.params, "pinned"),
    };
  }

  /** Some columns of what runs here differ in, and how they are doing. */
  private suggested(): string[] {
    const differing = this.fields.filter((key) => {
      if (!key.startsWith("config.")) return false;
      const values = new Set(this.sample.map((run) => JSON.stringify(format.flatten(run.config).get(key.slice(7)))));
      return values.size > 1 || this.sample.length === 1;
    });
    const metrics = this.fields.filter((key) => key.startsWith("summary.") && !/^summary\.(system|process|hw|container|tensormeter)\./.test(key));
    const telling = [...metrics].sort((a, b) => interest(a) - interest(b)).slice(0, 3);
    const spark = telling[0] ? [`spark.${telling[0].slice("summary.".length)}`] : [];
    return ["state", ...spark, ...telling, ...differing.slice(0, 3), ...DEFAULT.slice(1)];
  }

  private columnContext(): ColumnContext {
    return {
      project: this.project,
      sort: this.params.get("sort") ?? "-started",
      pinned: new Set(route.list(this.params, "pin")),
      selectedColor: (id) => {
        const position = this.selected().indexOf(id);
        return position < 0 ? null : lineColor(position);
      },
      toggle: (run) => this.toggle(run),
      filterBy: (clause) => this.addFilter(clause),
      changed: (run, change) => void this.change(run, change),
    };
  }

  private async change(run: api.Run, change: api.RunChange): Promise<void> {
    const before = { ...run };
    Object.assign(run, change);
    this.grid.refresh();
    try {
      await api.changeRun(run.id, run.project, change);
      this.problem.textContent = "";
    } catch (error) {
      Object.assign(run, before);
      this.grid.refresh();
      this.problem.textContent = `Not saved: ${error instanceof Error ? error.message : error}`;
    }
  }

  private selected(): string[] {
    return route.list(this.params, "selected");
  }

  private toggle(run: api.Run): void {
    const selected = this.selected();
    const without = selected.filter((id) => id !== run.id);
    route.change({ selected: route.joined(without.length < selected.length ? without : [...selected, run.id]) });
  }

  private compare(): void {
    const selected = this.selected();
    if (selected.length) route.go(["p", this.project, "runs", selected.join(",")]);
  }

  private onRows(): void {
    this.problem.textContent = "";
    this.grid.setRows(this.rows.total, (index) => this.rows.at(index));
    const filtered = this.params.has("filter");
    this.status.textContent = `${this.rows.found.toLocaleString("en")} ${this.rows.found === 1 ? "run" : "runs"}${filtered ? " match" : ""}`;
    if (this.sample.length) {
      fill(
        this.empty,
        this.rows.found === 0 &&
          h("div", { class: "state" }, h("h2", {}, "No run matches"), h("p", {}, button("Clear the filter", () => route.change({ filter: null })))),
      );
    }
    this.drawActions();
  }

  private onError(error: unknown): void {
    if (error instanceof api.ApiError && error.status === 400) {
      this.problem.textContent = error.message;
      return;
    }
    this.problem.textContent = error instanceof Error ? error.message : String(error);
    this.loaded = "";
  }

  private drawChips(): void {
    const filter = this.params.get("filter") ?? "";
    const group = this.params.get("group");
    fill(
      this.chips,
      ...STATES.map((state) => {
        const clause = `state = "${state}"`;
        const on = filter.includes(clause);
        return button(state, () => (on ? route.change({ filter: withoutClause(filter, clause) }) : this.addFilter(clause)), {
          class: `chip badge ${state}`,
          "aria-pressed": String(on),
        });
      }),
      group ? button(`grouped by ${shortLabel(group)} ✕`, () => route.change({ group: null }), { class: "chip" }) : null,
    );
  }

  private addFilter(clause: string): void {
    const filter = this.params.get("filter");
    if (filter?.includes(clause)) return;
    const simple = !filter || !/\bor\b/.test(filter);
    route.change({ filter: filter ? `${simple ? filter : `(${filter})`} and ${clause}` : clause });
  }

  private drawActions(): void {
    const selected = this.selected();
    const first = () => {
      const ids: string[] = [];
      for (const run of this.rows.known()) if (ids.length < 100 && !ids.includes(run.id)) ids.push(run.id);
      route.go(["p", this.project, "runs", ids.join(",")]);
    };
    const n = Math.min(this.rows.found, 100);
    fill(
      this.actions,
      selected.length
        ? button(`Compare ${selected.length}`, () => this.compare(), { class: "primary" })
        : button(`Charts of ${n === this.rows.found ? "all" : "the first"} ${n}`, first, { disabled: n === 0 }),
      selected.length > 0 && button("Pin", () => this.pinSelected(selected), { title: "Keep the selected runs on top" }),
      selected.length > 0 && button("Clear", () => route.change({ selected: null }), { "aria-label": "Clear the selection" }),
    );
  }

  private pinSelected(selected: string[]): void {
    const pinned = new Set(route.list(this.params, "pinned"));
    const all = selected.every((id) => pinned.has(id));
    for (const id of selected) all ? pinned.delete(id) : pinned.add(id);
    route.change({ pinned: route.joined(pinned) });
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
        const values = row.runs.map((run) => api.num(run.summary[metric]?.last)).filter(Number.isFinite);
        const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
        return values.length ? `${shortLabel(key)} ${format.number(mean)} on average` : "";
      });
    const toggle = button(`${row.open ? "▾" : "▸"} ${shortLabel(group)} = ${row.heading}`, () => this.fold(row), {
      "aria-expanded": String(row.open),
      tabindex: -1,
    });
    return h("div", { class: "heading" }, toggle, h("span", { class: "muted" }, [`${row.runs.length} runs`, ...means].filter(Boolean).join(" · ")));
  }

  private openMenu(one: GridColumn<Item>, anchor: HTMLElement): void {
    const { key } = one;
    const sortable = key.startsWith("summary.") && !/\.(last|min|max|mean|count|last_step)$/.test(key) ? `${key}.last` : key;
    const pinned = new Set(route.list(this.params, "pin"));
    const act = (label: string, action: () => void) =>
      button(
        label,
        () => {
          this.menu.hidePopover();
          action();
        },
        { role: "menuitem" },
      );
    const movable = key !== "name";
    fill(
      this.menu,
      !key.startsWith("spark.") && act("Sort ascending", () => route.change({ sort: sortable })),
      !key.startsWith("spark.") && act("Sort descending", () => route.change({ sort: `-${sortable}` })),
      !/^(spark|summary)\.|^(last_time|started|duration|notes|id|name)$/.test(key) && act("Group by this", () => route.change({ group: key })),
      !key.startsWith("spark.") && act("Filter by this …", () => this.startFilter(sortable)),
      movable &&
        act(pinned.has(key) ? "Unpin" : "Pin to the left", () => {
          if (!pinned.delete(key)) pinned.add(key);
          route.change({ pin: route.joined(pinned) });
        }),
      movable && act("Hide", () => this.setColumns(this.columns.filter((other) => other !== key))),
    );
    this.menu.showPopover();
    const place = anchor.getBoundingClientRect();
    this.menu.style.left = `${Math.min(place.left, innerWidth - this.menu.offsetWidth - 8)}px`;
    this.menu.style.top = `${place.bottom + 2}px`;
    this.menu.querySelector("button")?.focus();
  }

  /** Offer the fields that go on as the last word begins. */
  private complete(): void {
    const text = this.filter.value;
    const [word = ""] = /[\w./-]*$/.exec(text) ?? [];
    const before = text.slice(0, text.length - word.length);
    const inText = (before.match(/"/g)?.length ?? 0) % 2 === 1;
    const found = word && !inText ? [...BASIC_KEYS, "name", ...this.fields].filter((key) => key.startsWith(word) && key !== word) : [];
    fill(this.completions, ...found.slice(0, COMPLETIONS).map((key) => h("option", { value: before + quoted(key) })));
  }

  private startFilter(key: string): void {
    const before = this.filter.value.trim();
    this.filter.value = `${before ? `${before} and ` : ""}${quoted(key)} = `;
    this.filter.focus();
    this.filter.setSelectionRange(this.filter.value.length, this.filter.value.length);
  }

  private setColumns(columns: string[]): void {
    route.change({ columns: route.joined(columns) || " " });
  }

  private openChooser(): void {
    const search = h("input", { type: "search", placeholder: "Search fields", "aria-label": "Search fields" });
    const list = h("ul", { class: "fields" });
    const sparks = this.fields.filter((key) => key.startsWith("summary.")).map((key) => key.replace("summary.", "spark."));
    const minima = this.fields.filter((key) => key.startsWith("summary.")).flatMap((key) => [`${key}.min`, `${key}.max`]);
    const all = [...new Set([...this.columns, ...BASIC_KEYS, ...this.fields, ...sparks, ...minima])];
    const draw = () => {
      const text = search.value.toLowerCase();
      fill(
        list,
        ...all
          .filter((key) => key.toLowerCase().includes(text))
          .slice(0, 300)
          .map((key) => {
            const box = h("input", { type: "checkbox", checked: this.columns.includes(key) });
            box.addEventListener("change", () =>
              this.setColumns(box.checked ? [...this.columns, key] : this.columns.filter((other) => other !== key)),
            );
            return h("li", {}, h("label", {}, box, shortLabel(key), h("span", { class: "muted" }, key.includes(".") ? key.slice(0, key.indexOf(".")) : "")));
          }),
      );
    };
    search.addEventListener("input", draw);
    fill(
      this.chooser,
      h("h2", {}, "Columns"),
      search,
      list,
      h("p", {}, button("Done", () => this.chooser.close(), { class: "primary" }), " ", button("As suggested", () => {
        route.change({ columns: null });
        this.chooser.close();
      })),
    );
    draw();
    this.chooser.showModal();
  }
}

/** Losses and accuracies tell more than learning rates. */
function interest(key: string): number {
  const position = [/(eval|val).*loss/, /(eval|val).*acc/, /loss/, /acc/].findIndex((pattern) => pattern.test(key));
  return position < 0 ? 9 : position;
}

function withoutClause(filter: string, clause: string): string {
  return filter
    .split(" and ")
    .filter((part) => part.trim() !== clause)
    .join(" and ");
}
