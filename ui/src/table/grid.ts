// A virtual table: only the visible rows have elements. Rows and the elements in their cells are reused while the table
// scrolls; each frame moves a few of them and changes their texts.

import { button, fill, h } from "../base/dom";

export interface GridColumn<Row> {
  key: string;
  label: string;
  width: number;
  /** Whether the column stays at the left edge when the table scrolls sideways. */
  pinned: boolean;
  numeric?: boolean;
  sort?: "ascending" | "descending" | undefined;
  /** Fill an empty cell. Returns a function that shows a row in it. */
  create: (cell: HTMLElement) => (row: Row) => void;
}

/** The elements of one visible row. */
interface Slot<Row> {
  element: HTMLElement;
  show: ((row: Row) => void)[];
  index: number;
  shownRow: Row | undefined;
  stale: boolean;
  heading: HTMLElement | null;
}

export interface GridEvents<Row> {
  /** Called with the range of visible rows, loaded or not, in each frame that scrolls the table. */
  need: (first: number, last: number) => void;
  header: (column: GridColumn<Row>, anchor: HTMLElement) => void;
  open: (row: Row) => void;
  select: (row: Row) => void;
  isSelected: (row: Row) => boolean;
  /** Create the heading of a group; null for other rows. */
  heading: (row: Row) => HTMLElement | null;
}

/** Height of a row and of the head, in pixels. */
export const ROW = 34;
const SPARE = 6;

export class Grid<Row> {
  readonly element: HTMLElement;
  active = 0;
  private readonly head = h("div", { class: "head", role: "row" });
  private readonly body = h("div", { class: "rows", role: "rowgroup" });
  private columns: GridColumn<Row>[] = [];
  private count = 0;
  private rowAt: (index: number) => Row | undefined = () => undefined;
  private readonly visible = new Map<number, Slot<Row>>();
  private spare: Slot<Row>[] = [];
  private frame = 0;
  private height = 0;
  private readonly resized: ResizeObserver;

  constructor(
    label: string,
    private readonly events: GridEvents<Row>,
  ) {
    this.element = h("div", { class: "grid-table", role: "grid", "aria-label": label, tabindex: 0 }, this.head, this.body);
    this.element.addEventListener("scroll", () => this.schedule(), { passive: true });
    this.element.addEventListener("keydown", (event) => this.onKey(event));
    this.resized = new ResizeObserver(() => {
      this.height = this.element.clientHeight;
      this.schedule();
    });
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
    const headings = columns.map((column) => {
      const cell = h(
        "div",
        { class: cellClass(column), role: "columnheader", "aria-sort": column.sort, title: column.label },
        column.label
          ? button(column.label, (event) => this.events.header(column, event.currentTarget as HTMLElement), { "data-column": column.key })
          : null,
      );
      place(cell, column, left);
      left += column.width;
      return cell;
    });
    fill(this.head, ...headings);
    for (const { element } of [...this.visible.values(), ...this.spare]) element.remove();
    this.visible.clear();
    this.spare = [];
    this.schedule();
  }

  setRows(count: number, rowAt: (index: number) => Row | undefined): void {
    this.count = count;
    this.rowAt = rowAt;
    this.active = Math.min(this.active, Math.max(0, count - 1));
    if (this.element.getAttribute("aria-rowcount") !== String(count + 1)) {
      this.element.setAttribute("aria-rowcount", String(count + 1));
      this.body.style.height = `${count * ROW}px`;
    }
    this.schedule();
  }

  /** Redraw the visible rows. */
  refresh(): void {
    for (const slot of this.visible.values()) slot.stale = true;
    this.schedule();
  }

  private schedule(): void {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.render();
    });
  }

  private render(): void {
    const { scrollTop, scrollLeft } = this.element;
    this.element.classList.toggle("moved", scrollLeft > 0);
    // The number of rows is constant, because adding and removing elements would cost a layout.
    const from = Math.floor(scrollTop / ROW) - SPARE;
    const first = Math.max(0, from);
    const last = Math.min(this.count, from + Math.ceil(this.height / ROW) + 1 + 2 * SPARE);
    for (const [index, slot] of this.visible) {
      if (index >= first && index < last) continue;
      // An editor in a row that scrolls out of sight is closed.
      activeEditor(slot.element)?.blur();
      this.visible.delete(index);
      this.spare.push(slot);
    }
    for (let index = first; index < last; index++) {
      let slot = this.visible.get(index);
      if (!slot) {
        slot = this.spare.pop() ?? this.makeSlot();
        this.visible.set(index, slot);
        this.move(slot, index);
      }
      const content = this.rowAt(index);
      if ((slot.stale || slot.shownRow !== content) && !activeEditor(slot.element)) this.draw(slot, content);
      slot.element.classList.toggle("active", index === this.active);
    }
    for (const { element } of this.spare) if (!element.hidden) element.hidden = true;
    this.events.need(first, last);
  }

  private move(slot: Slot<Row>, index: number): void {
    const { element } = slot;
    slot.index = index;
    slot.stale = true;
    element.style.transform = `translateY(${index * ROW}px)`;
    element.setAttribute("aria-rowindex", String(index + 2));
    element.dataset.index = String(index);
    if (!element.isConnected) this.body.append(element);
    element.hidden = false;
  }

  private makeSlot(): Slot<Row> {
    let left = 0;
    const show: ((row: Row) => void)[] = [];
    const cells = this.columns.map((column) => {
      const cell = h("div", { class: cellClass(column), role: "gridcell" });
      place(cell, column, left);
      left += column.width;
      show.push(column.create(cell));
      return cell;
    });
    const element = h("div", { class: "row", role: "row" }, ...cells);
    const slot: Slot<Row> = { element, show, index: -1, shownRow: undefined, stale: true, heading: null };
    element.addEventListener("click", (event) => {
      this.active = slot.index;
      const target = event.target as HTMLElement;
      if (!target.closest("a, button, input, label, textarea, .editable")) this.schedule();
    });
    return slot;
  }

  private draw(slot: Slot<Row>, content: Row | undefined): void {
    const { element } = slot;
    const heading = slot.heading && slot.shownRow === content ? slot.heading : content === undefined ? null : (this.events.heading(content));
    if (slot.heading !== heading) slot.heading?.remove();
    slot.shownRow = content;
    slot.stale = false;
    slot.heading = heading;
    // Cells of headings and of rows that are still loading keep their old contents, hidden.
    element.classList.toggle("group", slot.heading !== null);
    element.classList.toggle("waiting", content === undefined);
    element.ariaBusy = String(content === undefined);
    const selected = String(content !== undefined && !slot.heading && this.events.isSelected(content));
    if (element.getAttribute("aria-selected") !== selected) element.setAttribute("aria-selected", selected);
    if (slot.heading) {
      if (!slot.heading.isConnected) element.append(slot.heading);
    } else if (content !== undefined) for (const show of slot.show) show(content);
  }

  private onKey(event: KeyboardEvent): void {
    if (event.target !== this.element) return;
    const page = Math.max(1, Math.floor(this.height / ROW) - 2);
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
    const row = this.rowAt(this.active);
    if (move !== undefined) {
      this.active = Math.max(0, Math.min(this.count - 1, this.active + move));
      const top = this.active * ROW;
      const { scrollTop } = this.element;
      // The sticky head is as high as a row.
      if (top < scrollTop) this.element.scrollTop = top;
      else if (top + 2 * ROW > scrollTop + this.height) this.element.scrollTop = top + 2 * ROW - this.height;
      this.schedule();
    } else if (row !== undefined && event.key === "Enter") this.events.open(row);
    else if (row !== undefined && event.key === " ") this.events.select(row);
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

/** The focused editor in a row; null if there is none. */
function activeEditor(row: HTMLElement): HTMLElement | null {
  const focused = document.activeElement as HTMLElement | null;
  return focused?.matches("input.inline") && row.contains(focused) ? focused : null;
}
