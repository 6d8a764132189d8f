// A logged table that can be sorted by column and filtered by text. Its cells may contain images.

import { button, fill, h } from "../base/dom";
import * as format from "../base/format";
import { picture } from "./lightbox";

const PAGE_ROWS = 200;

export class MediaTable {
  readonly element: HTMLElement;
  private readonly body = h("tbody", {});
  private readonly head = h("tr", {});
  private readonly count = h("p", { class: "muted" });
  private readonly search = h("input", { type: "search", placeholder: "Filter rows", "aria-label": "Filter rows", on: { input: () => this.draw() } });
  private readonly columns: string[];
  private readonly rows: unknown[][];
  private sort = -1;
  private ascending = true;
  private rowLimit = PAGE_ROWS;

  constructor(
    columns: unknown,
    rows: unknown,
    private readonly image: (digest: string) => Promise<string>,
  ) {
    this.columns = Array.isArray(columns) ? columns.map(String) : [];
    this.rows = Array.isArray(rows) ? rows.filter(Array.isArray) : [];
    const region = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table" }, h("table", { class: "plain" }, h("thead", {}, this.head), this.body));
    region.addEventListener("scroll", () => {
      if (region.scrollTop + region.clientHeight < region.scrollHeight - 100 || this.rowLimit >= this.rows.length) return;
      this.rowLimit += PAGE_ROWS;
      this.draw();
    });
    fill(this.head, ...this.columns.map((name, position) => h("th", { scope: "col" }, button(name, () => this.sortBy(position)))));
    this.element = h("div", { class: "logged" }, this.search, region, this.count);
    this.draw();
  }

  private draw(): void {
    const text = this.search.value.toLowerCase();
    let rows = text ? this.rows.filter((row) => row.some((cell) => cellText(cell).toLowerCase().includes(text))) : this.rows;
    if (this.sort >= 0) {
      const sign = this.ascending ? 1 : -1;
      rows = [...rows].sort((a, b) => sign * compare(a[this.sort], b[this.sort]));
    }
    for (const [position, cell] of [...this.head.children].entries()) {
      if (position === this.sort) cell.setAttribute("aria-sort", this.ascending ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
    }
    fill(this.body, ...rows.slice(0, this.rowLimit).map((row) => h("tr", {}, ...row.map((cell) => this.cell(cell)))));
    const all = format.counted(this.rows.length, "row");
    this.count.textContent = rows.length === this.rows.length ? all : `${rows.length} of ${all}`;
  }

  private sortBy(position: number): void {
    this.ascending = this.sort === position ? !this.ascending : true;
    this.sort = position;
    this.draw();
  }

  private cell(content: unknown): HTMLElement {
    const image = imageIn(content);
    if (!image) return h("td", { class: typeof content === "number" ? "numeric" : "" }, format.value(content));
    const element = h("img", { alt: image.caption || "image", class: "thumb" });
    const opener = picture(element, image.caption);
    this.image(image.digest).then(
      (address) => {
        element.src = address;
      },
      () => opener.replaceWith("image not available"),
    );
    return h("td", {}, opener);
  }
}

function imageIn(cell: unknown): { digest: string; caption: string } | null {
  if (cell === null || typeof cell !== "object" || !("digest" in cell)) return null;
  return { digest: String(cell.digest), caption: "caption" in cell ? String(cell.caption ?? "") : "" };
}

/** The text of a cell for filtering and sorting. */
function cellText(cell: unknown): string {
  const image = imageIn(cell);
  return image ? image.caption : cell === null || cell === undefined ? "" : typeof cell === "object" ? JSON.stringify(cell) : String(cell);
}

function compare(a: unknown, b: unknown): number {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (a === null || a === undefined) return 1;
  if (b === null || b === undefined) return -1;
  return cellText(a).localeCompare(cellText(b), "en", { numeric: true });
}
