// Which columns the runs table has: any field of the configuration or the summary, and what every run has.

import { button, fill, h } from "../dom";
import { BASIC_KEYS, shortLabel } from "../table/columns";

const SHOWN = 300;

export class ColumnChooser {
  readonly element = h("dialog", { class: "chooser", "aria-label": "Columns" });

  /** `choose` gets the columns in order; null: those that are suggested. */
  constructor(private readonly choose: (columns: string[] | null) => void) {}

  open(shown: string[], fields: string[]): void {
    let columns = shown;
    const search = h("input", { type: "search", placeholder: "Search fields", "aria-label": "Search fields" });
    const list = h("ul", { class: "fields" });
    const more = h("p", { class: "muted" });
    const metrics = fields.filter((key) => key.startsWith("summary."));
    const sparks = metrics.map((key) => key.replace("summary.", "spark."));
    const extremes = metrics.flatMap((key) => [`${key}.min`, `${key}.max`]);
    const all = [...new Set([...columns, ...BASIC_KEYS, ...fields, ...sparks, ...extremes])];
    const item = (key: string) => {
      const box = h("input", { type: "checkbox", checked: columns.includes(key) });
      box.addEventListener("change", () => {
        columns = box.checked ? [...columns, key] : columns.filter((other) => other !== key);
        this.choose(columns);
      });
      const kind = key.includes(".") ? key.slice(0, key.indexOf(".")) : "";
      return h("li", {}, h("label", {}, box, shortLabel(key), h("span", { class: "muted" }, kind)));
    };
    const draw = () => {
      const text = search.value.toLowerCase();
      const found = all.filter((key) => key.toLowerCase().includes(text));
      fill(list, ...found.slice(0, SHOWN).map(item));
      more.textContent = found.length > SHOWN ? `and ${found.length - SHOWN} more: search for them` : "";
    };
    const suggested = () => {
      this.choose(null);
      this.element.close();
    };
    search.addEventListener("input", draw);
    fill(
      this.element,
      h("h2", {}, "Columns"),
      search,
      list,
      more,
      h("p", { class: "row-of-buttons" }, button("Done", () => this.element.close(), { class: "primary" }), button("As suggested", suggested)),
    );
    draw();
    this.element.showModal();
  }
}
