// Dialog that chooses the columns of the runs table. The server searches the fields of the project.

import { button, fill, h, setText } from "../base/dom";
import * as format from "../base/format";
import * as listing from "../data/metrics";
import { BASIC_KEYS, shortLabel } from "./columns";

/** Number of fields that are listed. */
const SHOWN = 100;

export class ColumnChooser {
  readonly element = h("dialog", { class: "chooser", "aria-label": "Columns" });
  private readonly search = h("input", { type: "search", placeholder: "Search fields", "aria-label": "Search fields", on: { input: () => void this.find() } });
  private readonly list = h("ul", { class: "fields" });
  private readonly more = h("p", { class: "muted", role: "status" });
  private columns: string[] = [];
  private fields: string[] = [];
  private abort = new AbortController();

  /** `newest` returns fields that the server's list may lack. `choose` receives the columns in order, or null for the suggested ones. */
  constructor(
    private readonly project: string,
    private readonly newest: () => string[],
    private readonly choose: (columns: string[] | null) => void,
  ) {
    const suggested = () => {
      this.choose(null);
      this.element.close();
    };
    fill(
      this.element,
      h("h2", {}, "Columns"),
      this.search,
      this.list,
      this.more,
      h("p", { class: "row-of-buttons" }, button("Done", () => this.element.close(), { class: "primary" }), button("Reset to suggested", suggested)),
    );
  }

  open(columns: string[]): void {
    this.search.value = "";
    this.fields = [];
    this.element.showModal();
    this.update(columns);
    void this.find();
  }

  /** Show other columns if the dialog is open. */
  update(columns: string[]): void {
    if (!this.element.open || columns.join("\n") === this.columns.join("\n")) return;
    this.columns = columns;
    this.draw();
  }

  private async find(): Promise<void> {
    this.abort.abort();
    const { signal } = (this.abort = new AbortController());
    this.draw();
    setText(this.more, "Searching …");
    try {
      const { fields, total } = await listing.fields(this.project, { search: this.field, limit: SHOWN }, signal);
      this.fields = fields;
      this.draw();
      setText(this.more, total > fields.length ? `${fields.length} of ${total.toLocaleString("en")} fields; search to find others` : "");
    } catch (error) {
      if (!signal.aborted) setText(this.more, format.message(error));
    }
  }

  /** The search without a statistic: these are columns of their own, but part of the field of their metric. */
  private get field(): string {
    return this.search.value.replace(/[ .](min|max)$/, "");
  }

  private draw(): void {
    const text = this.search.value.toLowerCase();
    const isMatch = (key: string) => key.toLowerCase().includes(text) || shortLabel(key).toLowerCase().includes(text);
    const fields = [...new Set([...this.fields, ...this.newest().filter((key) => key.toLowerCase().includes(this.field.toLowerCase())).slice(0, SHOWN)])];
    const metrics = fields.filter((key) => key.startsWith("summary."));
    const sparks = metrics.map((key) => key.replace("summary.", "spark."));
    const extremes = metrics.flatMap((key) => [`${key}.min`, `${key}.max`]);
    const keys = new Set([...[...this.columns, ...BASIC_KEYS].filter(isMatch), ...fields, ...sparks, ...extremes]);
    fill(this.list, ...[...keys].map((key) => this.item(key)));
  }

  private item(key: string): HTMLElement {
    const box = h("input", { type: "checkbox", checked: this.columns.includes(key) });
    box.addEventListener("change", () => {
      this.columns = box.checked ? [...this.columns, key] : this.columns.filter((other) => other !== key);
      this.choose(this.columns);
    });
    const kind = key.includes(".") ? key.slice(0, key.indexOf(".")) : "";
    return h("li", {}, h("label", {}, box, shortLabel(key), h("span", { class: "muted" }, kind)));
  }
}
