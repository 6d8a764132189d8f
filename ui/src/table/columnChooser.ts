// Dialog that chooses the columns of the runs table.

import { button, fill, h } from "../base/dom";
import { BASIC_KEYS, shortLabel } from "./columns";

const SHOWN = 300;

export class ColumnChooser {
  readonly element = h("dialog", { class: "chooser", "aria-label": "Columns" });
  private readonly search = h("input", { type: "search", placeholder: "Search fields", "aria-label": "Search fields", on: { input: () => this.draw() } });
  private readonly list = h("ul", { class: "fields" });
  private readonly more = h("p", { class: "muted" });
  private columns: string[] = [];
  private keys: string[] = [];

  /** `choose` receives the columns in order, or null for the suggested ones. */
  constructor(private readonly choose: (columns: string[] | null) => void) {
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

  open(columns: string[], fields: string[]): void {
    this.search.value = "";
    this.element.showModal();
    this.update(columns, fields);
  }

  /** Update the list of fields if the dialog is open: fields may be loaded after it was opened. */
  update(columns: string[], fields: string[]): void {
    if (!this.element.open) return;
    const metrics = fields.filter((key) => key.startsWith("summary."));
    const sparks = metrics.map((key) => key.replace("summary.", "spark."));
    const extremes = metrics.flatMap((key) => [`${key}.min`, `${key}.max`]);
    this.columns = columns;
    this.keys = [...new Set([...columns, ...BASIC_KEYS, ...fields, ...sparks, ...extremes])];
    this.draw();
  }

  private draw(): void {
    const text = this.search.value.toLowerCase();
    const matches = this.keys.filter((key) => key.toLowerCase().includes(text));
    fill(this.list, ...matches.slice(0, SHOWN).map((key) => this.item(key)));
    this.more.textContent = matches.length > SHOWN ? `and ${matches.length - SHOWN} more; search to find them` : "";
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
