// Charts in sections by the prefix of their names. Charts are drawn when they become visible.

import { button, drawing, fill, h } from "../base/dom";
import { ChartCard, type ChartCardEvents, type ChartSource } from "../chart/chartCard";
import type { Section } from "./metricSections";

const NEAR = "300px";

export class ChartSections {
  readonly element = h("div", { class: "sections" });
  private cards = new Map<string, ChartCard>();
  private cells = new Map<Element, ChartCard>();
  private shape = "";
  private readonly observer = new IntersectionObserver((entries) => this.onSight(entries), { rootMargin: NEAR });
  private width = 0;
  private readonly resized = new ResizeObserver(() => {
    // Only the width matters: the height changes with every remark below a chart.
    const before = this.width;
    this.width = this.element.clientWidth;
    if (!before || before === this.width) return;
    for (const card of this.cards.values()) card.measure();
    this.redraw();
  });

  constructor(
    private readonly events: ChartCardEvents,
    private readonly onFold: (closed: string[]) => void,
    private readonly showsLegend: boolean,
  ) {
    this.resized.observe(this.element);
  }

  /** Show these sections. Existing cards keep their plots. */
  update(all: Section<ChartSource>[], closed: string[]): void {
    const shape = JSON.stringify([all.map(({ name, sources }) => [name, sources.map(({ title }) => title)]), closed]);
    if (shape === this.shape) return;
    this.shape = shape;
    const cards = new Map<string, ChartCard>();
    this.observer.disconnect();
    this.cells.clear();
    fill(this.element, ...all.map((section) => this.section(section, all, closed, cards)));
    for (const [title, card] of this.cards) if (!cards.has(title)) card.sleep();
    this.cards = cards;
    this.wakeFirst();
  }

  /** Draw visible cards at once, because the observer reports only after the next frame. */
  private wakeFirst(): void {
    const inSight: ChartCard[] = [];
    for (const card of this.cards.values()) {
      const { top, bottom, height } = card.element.getBoundingClientRect();
      if (top > innerHeight) break;
      if (bottom > 0 && height > 0) inSight.push(card);
    }
    this.wake(inSight);
  }

  private wake(cards: ChartCard[]): void {
    for (const card of cards) card.measure();
    for (const card of cards) card.wake();
  }

  /** Read the points of visible charts again. */
  refresh(): void {
    for (const card of this.cards.values()) void card.refresh();
  }

  redraw(): void {
    for (const card of this.cards.values()) card.draw();
  }

  close(): void {
    this.observer.disconnect();
    this.resized.disconnect();
    for (const card of this.cards.values()) card.sleep();
    this.cards.clear();
  }

  private section(section: Section<ChartSource>, all: Section<ChartSource>[], closed: string[], cards: Map<string, ChartCard>): HTMLElement {
    const open = !closed.includes(section.name);
    const toggle = button(
      "",
      () => this.onFold(open ? [...closed, section.name] : closed.filter((name) => name !== section.name)),
      { "aria-expanded": String(open), class: "fold" },
    );
    toggle.append(drawing(open ? "down" : "right"), section.name || "charts", h("span", { class: "muted" }, section.sources.length));
    const grid = h("div", { class: section.spread ? "charts spread" : "charts" });
    if (open) {
      for (const source of section.sources) {
        const card = this.cards.get(source.title) ?? new ChartCard(source, this.events, false, this.showsLegend);
        cards.set(source.title, card);
        this.cells.set(card.element, card);
        grid.append(card.element);
        this.observer.observe(card.element);
      }
    }
    const heading = all.length > 1 || section.name ? h("h2", {}, toggle) : null;
    return h("section", { class: "section" }, heading, grid);
  }

  private onSight(entries: IntersectionObserverEntry[]): void {
    const cards = (inSight: boolean) =>
      entries.filter(({ isIntersecting }) => isIntersecting === inSight).flatMap(({ target }) => this.cells.get(target) ?? []);
    for (const card of cards(false)) card.sleep();
    this.wake(cards(true));
  }
}
