// Dialog that finds one metric of the selected runs by name. The server searches.

import { button, fill, h, setText } from "../base/dom";
import * as format from "../base/format";
import { metrics } from "../data/metrics";

const LISTED = 100;

export class MetricPicker {
  readonly element: HTMLDialogElement;
  private readonly search = h("input", { type: "search", placeholder: "Search metrics", "aria-label": "Search metrics", on: { input: () => void this.find() } });
  private readonly list = h("ul", { class: "fields" });
  private readonly status = h("p", { class: "muted", role: "status" });
  private abort = new AbortController();
  private chosen: string | null = null;

  /** `choose` receives the name of the metric; null if none was chosen. */
  constructor(
    title: string,
    private readonly project: string,
    private readonly runs: string[],
    choose: (name: string | null) => void,
  ) {
    this.element = h(
      "dialog",
      { class: "chooser", "aria-label": title, on: { close: () => choose(this.chosen) } },
      h("h2", {}, title),
      this.search,
      this.list,
      this.status,
      h("p", { class: "row-of-buttons" }, button("Cancel", () => this.element.close())),
    );
  }

  open(): void {
    this.chosen = null;
    this.search.value = "";
    this.element.showModal();
    void this.find();
  }

  private async find(): Promise<void> {
    this.abort.abort();
    const { signal } = (this.abort = new AbortController());
    try {
      const page = await metrics(this.project, this.runs, { pane: "charts", search: this.search.value, limit: LISTED }, signal);
      const names = [...new Set(page.metrics.filter(({ kind }) => kind === "gauge" || kind === "sum").map(({ name }) => name))];
      fill(this.list, ...names.map((name) => h("li", {}, button(name, () => this.pick(name), { class: "pick" }))));
      setText(this.status, page.total > names.length ? `${names.length} of ${page.total.toLocaleString("en")} metrics; search to find others` : `${names.length} metrics`);
    } catch (error) {
      if (!signal.aborted) setText(this.status, format.message(error));
    }
  }

  private pick(name: string): void {
    this.chosen = name;
    this.element.close();
  }
}
