// A list of which only the visible items have elements. Items may differ in height: heights are estimated, and measured once an
// item is visible. The list can stick to its end.

import { arrange, h } from "../base/dom";

const SPARE = 12;
const MAX_ROUNDS = 4;

export interface ListEvents<Item> {
  create: (item: Item) => HTMLElement;
  /** Identifies an item. Its element is kept while this text stays the same. */
  key: (item: Item) => string;
  /** Called when the first or the last items become visible. */
  nearStart: () => void;
  nearEnd: () => void;
  /** Called when the list begins or ends to stick to its end. */
  stick: (isStuck: boolean) => void;
}

export class VirtualList<Item extends object> {
  readonly element: HTMLElement;
  isStuck = true;
  private items: readonly Item[] = [];
  /** Measured heights that differ from the estimate. */
  private readonly heights = new Map<Item, number>();
  private tops: Float64Array = new Float64Array(1);
  private estimate: number;
  private readonly rows = h("div", { class: "rows" });
  private readonly space = h("div", { class: "space" });
  private elements = new Map<string, HTMLElement>();
  private frame = 0;
  private readonly resized: ResizeObserver;
  private width = 0;
  private lastTop = 0;

  constructor(
    label: string,
    lineHeight: number,
    private readonly events: ListEvents<Item>,
  ) {
    this.estimate = lineHeight;
    this.space.append(this.rows);
    this.element = h("div", { class: "log", tabindex: 0, role: "region", "aria-label": label, on: { scroll: () => this.onScroll() } }, this.space);
    this.resized = new ResizeObserver(() => {
      if (this.element.clientWidth !== this.width) this.heights.clear();
      this.width = this.element.clientWidth;
      this.layOut();
    });
    this.resized.observe(this.element);
  }

  close(): void {
    this.resized.disconnect();
    cancelAnimationFrame(this.frame);
  }

  /** Show these items. `added` is the number of items that are new before the earlier ones; negative if some were removed there. */
  show(items: readonly Item[], added = 0): void {
    const anchor = this.isStuck ? null : this.anchor();
    this.items = items;
    this.measureTops();
    if (anchor) this.element.scrollTop = (this.tops[Math.max(0, anchor.index + added)] ?? 0) + anchor.offset;
    this.layOut();
  }

  /** Create all elements again, because items are drawn differently now. */
  redraw(): void {
    const anchor = this.isStuck ? null : this.anchor();
    this.elements.clear();
    this.heights.clear();
    this.measureTops();
    if (anchor) this.element.scrollTop = (this.tops[anchor.index] ?? 0) + anchor.offset;
    this.layOut();
  }

  /** Scroll an item to the middle of the list. */
  reveal(index: number): void {
    this.setStuck(false);
    const middle = () => (this.tops[index] ?? 0) - (this.element.clientHeight - this.estimate) / 2;
    this.element.scrollTop = middle();
    this.layOut();
    this.element.scrollTop = middle(); // now that the items above have been measured
    this.layOut();
  }

  toEnd(): void {
    this.setStuck(true);
    this.layOut();
  }

  /** Range of the visible items. */
  visible(): { first: number; last: number } {
    const top = this.element.scrollTop;
    return { first: this.indexAt(top), last: this.indexAt(top + this.element.clientHeight) };
  }

  private onScroll(): void {
    const { scrollTop, scrollHeight, clientHeight } = this.element;
    // Only the user moves the list up; content that grows leaves the position as it is.
    if (scrollTop + clientHeight >= scrollHeight - 4) this.setStuck(true);
    else if (scrollTop < this.lastTop - 1) this.setStuck(false);
    this.lastTop = scrollTop;
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.layOut());
  }

  private setStuck(isStuck: boolean): void {
    if (isStuck === this.isStuck) return;
    this.isStuck = isStuck;
    this.events.stick(isStuck);
  }

  private anchor(): { index: number; offset: number } {
    const top = this.element.scrollTop;
    const index = this.indexAt(top);
    return { index, offset: top - (this.tops[index] ?? 0) };
  }

  private indexAt(top: number): number {
    let low = 0;
    let high = this.items.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((this.tops[middle] ?? 0) <= top) low = middle;
      else high = middle - 1;
    }
    return Math.max(0, low);
  }

  private measureTops(): void {
    const { items, heights, estimate } = this;
    const tops = this.tops.length === items.length + 1 ? this.tops : new Float64Array(items.length + 1);
    // Most items have the estimated height, so the others are few.
    const hasHeights = heights.size > 0;
    let top = 0;
    for (let index = 0; index < items.length; index++) {
      tops[index] = top;
      top += hasHeights ? (heights.get(items[index] as Item) ?? estimate) : estimate;
    }
    tops[items.length] = top;
    this.tops = tops;
    this.space.style.height = `${top}px`;
  }

  private layOut(): void {
    if (!this.element.isConnected) return;
    let shown = { first: 0, last: -1 };
    for (let round = 0; round < MAX_ROUNDS; round++) {
      if (this.isStuck) this.element.scrollTop = this.element.scrollHeight;
      const anchor = this.anchor();
      const { first, last } = this.visible();
      shown = { first: Math.max(0, first - SPARE), last: Math.min(this.items.length - 1, last + SPARE) };
      this.draw(shown);
      if (!this.measure(shown)) break;
      this.measureTops();
      this.rows.style.transform = `translateY(${this.tops[shown.first] ?? 0}px)`;
      if (!this.isStuck) this.element.scrollTop = (this.tops[anchor.index] ?? 0) + anchor.offset;
    }
    if (this.isStuck) this.element.scrollTop = this.element.scrollHeight;
    this.lastTop = this.element.scrollTop;
    if (shown.first === 0) this.events.nearStart();
    if (shown.last === this.items.length - 1) this.events.nearEnd();
  }

  private draw({ first, last }: { first: number; last: number }): void {
    const elements = new Map<string, HTMLElement>();
    for (let index = first; index <= last; index++) {
      const item = this.items[index] as Item;
      const key = this.events.key(item);
      elements.set(key, this.elements.get(key) ?? this.events.create(item));
    }
    this.elements = elements;
    arrange(this.rows, [...elements.values()]);
    this.rows.style.transform = `translateY(${this.tops[first] ?? 0}px)`;
  }

  /** Measure the drawn items. Returns whether a height was not as expected. */
  private measure({ first, last }: { first: number; last: number }): boolean {
    let hasChanged = false;
    for (let index = first; index <= last; index++) {
      const item = this.items[index] as Item;
      const height = this.elements.get(this.events.key(item))?.offsetHeight ?? 0;
      if (height === 0 || height === (this.heights.get(item) ?? this.estimate)) continue;
      if (height === this.estimate) this.heights.delete(item);
      else this.heights.set(item, height);
      hasChanged = true;
    }
    return hasChanged;
  }
}
