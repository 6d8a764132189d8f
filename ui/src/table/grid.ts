// A table of any length of which only the rows in sight exist. Rows are reused while it scrolls.

import { fill, h } from "../dom";

export interface GridColumn<Row> {
  key: string;
  label: string;
  width: number;
  /** Stays at the left edge when the table is moved sideways. */
  pinned: boolean;
  numeric?: boolean;
  sort?: "ascending" | "descending" | undefined;
  /** Fill a cell, which may show another row from before. */
  draw: (cell: HTMLElement, row: Row) => void;
}

export interface GridEvents<Row> {
  /** Rows that are in sight but not there yet. */
  need: (first: number, last: number) => void;
  header: (column: GridColumn<Row>, anchor: HTMLElement) => void;
  open: (row: Row) => void;
  select: (row: Row, index: number) => void;
  isSelected: (row: Row) => boolean;
  /** A row that heads a group, instead of cells. */
  heading?: (row: Row) => HTMLElement | null;
}

const ROW = 34;
const SPARE = 6;

export class Grid<Row> {
  readonly element: HTMLElement;
  active = 0;
  private readonly head = h("div", { class: "head", role: "row" });
  private readonly body = h("div", { class: "rows", role: "rowgroup" });
  private columns: GridColumn<Row>[] = [];
  private count = 0;
  private at: (index: number) => Row | undefined = () => undefined;
  private readonly live = new Map<number, HTMLElement>();
  private free: HTMLElement[] = [];
  private drawn = new WeakMap<HTMLElement, Row | undefined>();
  private frame = 0;
  private readonly resized: ResizeObserver;

  constructor(
    label: string,
    private readonly events: GridEvents<Row>,
  ) {
    this.element = h("div", { class: "grid-table", role: "grid", "aria-label": label, tabindex: 0 }, this.head, this.body);
    this.element.addEventListener("scroll", () => this.schedule(), { passive: true });
    this.element.addEventListener("keydown", (event) => this.onKey(event));
    this.resized = new ResizeObserver(() => this.schedule());
    this.resized.observe(this.element);
  }

  close(): void {
    this.resized.disconnect();
    cancelAnimationFrame(this.frame);
  }

  setColumns(columns: GridColumn<Row>[]): void {
    this.columns = columns;
    let left = 0;
    const total = columns.reduce((sum, { width }) => sum + width, 0);
    this.element.style.setProperty("--width", `${total}px`);
    const heads = columns.map((column) => {
      const cell = h(
        "div",
        { class: cellClass(column), role: "columnheader", "aria-sort": column.sort, title: column.label },
        column.label
          ? h("button", { type: "button", "data-column": column.key, on: { click: (event) => this.events.header(column, event.currentTarget as HTMLElement) } }, column.label)
          : null,
      );
      place(cell, column, left);
      left += column.width;
      return cell;
    });
    fill(this.head, ...heads);
    for (const row of this.live.values()) row.remove();
    this.live.clear();
    this.free = [];
    this.schedule();
  }

  setRows(count: number, at: (index: number) => Row | undefined): void {
    this.count = count;
    this.at = at;
    this.active = Math.min(this.active, Math.max(0, count - 1));
    this.element.setAttribute("aria-rowcount", String(count + 1));
    this.body.style.height = `${count * ROW}px`;
    this.schedule();
  }

  /** Draw again what is in sight. */
  refresh(): void {
    this.drawn = new WeakMap();
    this.schedule();
  }

  top(): void {
    this.element.scrollTop = 0;
  }

  private schedule(): void {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.render();
    });
  }

  private render(): void {
    const { scrollTop, scrollLeft, clientHeight } = this.element;
    this.element.classList.toggle("moved", scrollLeft > 0);
    const first = Math.max(0, Math.floor(scrollTop / ROW) - SPARE);
    const last = Math.min(this.count, Math.ceil((scrollTop + clientHeight) / ROW) + SPARE);
    for (const [index, row] of this.live) {
      if (index >= first && index < last) continue;
      this.live.delete(index);
      this.free.push(row);
    }
    let missing = false;
    for (let index = first; index < last; index++) {
      let row = this.live.get(index);
      if (!row) {
        row = this.free.pop() ?? this.makeRow();
        this.live.set(index, row);
        row.style.transform = `translateY(${index * ROW}px)`;
        row.setAttribute("aria-rowindex", String(index + 2));
        row.dataset.index = String(index);
        this.drawn.delete(row);
      }
      const content = this.at(index);
      missing ||= content === undefined;
      if (!this.drawn.has(row) || this.drawn.get(row) !== content) this.drawRow(row, content);
      row.classList.toggle("active", index === this.active);
      if (!row.isConnected) this.body.append(row);
      row.hidden = false;
    }
    for (const row of this.free) row.hidden = true;
    if (missing) this.events.need(first, last);
  }

  private makeRow(): HTMLElement {
    let left = 0;
    const cells = this.columns.map((column) => {
      const cell = h("div", { class: cellClass(column), role: "gridcell" });
      place(cell, column, left);
      left += column.width;
      return cell;
    });
    const row = h("div", { class: "row", role: "row" }, ...cells);
    const index = () => Number(row.dataset.index);
    row.addEventListener("click", (event) => {
      this.active = index();
      const target = event.target as HTMLElement;
      if (!target.closest("a, button, input, label, textarea, .editable")) this.schedule();
    });
    return row;
  }

  private drawRow(row: HTMLElement, content: Row | undefined): void {
    this.drawn.set(row, content);
    row.querySelector(":scope > .heading")?.remove();
    const heading = content === undefined ? null : (this.events.heading?.(content) ?? null);
    row.classList.toggle("group", heading !== null);
    row.classList.toggle("waiting", content === undefined);
    row.setAttribute("aria-selected", String(content !== undefined && !heading && this.events.isSelected(content)));
    for (const [position, column] of this.columns.entries()) {
      const cell = row.children[position] as HTMLElement;
      if (content === undefined || heading) cell.textContent = "";
      else column.draw(cell, content);
    }
    if (heading) row.append(heading);
  }

  private onKey(event: KeyboardEvent): void {
    if (event.target !== this.element) return;
    const page = Math.max(1, Math.floor(this.element.clientHeight / ROW) - 2);
    const moves: Record<string, number> = {
      ArrowDown: 1,
      ArrowUp: -1,
      j: 1,
      k: -1,
      PageDown: page,
      PageUp: -page,
      Home: -this.count,
      End: this.count,
    };
    const move = moves[event.key];
    const row = this.at(this.active);
    if (move !== undefined) {
      this.active = Math.max(0, Math.min(this.count - 1, this.active + move));
      const top = this.active * ROW;
      const { scrollTop, clientHeight } = this.element;
      const headHeight = this.head.offsetHeight;
      if (top < scrollTop) this.element.scrollTop = top;
      else if (top + ROW + headHeight > scrollTop + clientHeight) this.element.scrollTop = top + ROW + headHeight - clientHeight;
      this.schedule();
    } else if (row !== undefined && event.key === "Enter") this.events.open(row);
    else if (row !== undefined && event.key === " ") this.events.select(row, this.active);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

function cellClass<Row>({ pinned, numeric }: GridColumn<Row>): string {
  return `cell${pinned ? " pinned" : ""}${numeric ? " numeric" : ""}`;
}

function place<Row>(cell: HTMLElement, column: GridColumn<Row>, left: number): void {
  cell.style.width = `${column.width}px`;
  if (column.pinned) cell.style.left = `${left}px`;
}
