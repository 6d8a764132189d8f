// The cards of charts on a pane. Charts are drawn when they become visible.

import { ChartCard, type ChartCardEvents, type ChartSource } from "../chart/chartCard";

const NEAR = "300px";

export class ChartDeck {
  private cards = new Map<string, ChartCard>();
  private shown = new Map<string, ChartCard>();
  private readonly cells = new Map<Element, ChartCard>();
  private readonly observer = new IntersectionObserver((entries) => this.onSight(entries), { rootMargin: NEAR });
  private width = 0;
  private readonly resized: ResizeObserver;

  /** `element` contains all cards. */
  constructor(
    private readonly element: HTMLElement,
    private readonly events: ChartCardEvents,
    private readonly showsLegend: boolean,
  ) {
    this.resized = new ResizeObserver(() => {
      // Only the width matters: the height changes with every remark below a chart.
      const before = this.width;
      this.width = this.element.clientWidth;
      if (!before || before === this.width) return;
      for (const card of this.cards.values()) card.measure();
      this.redraw();
    });
    this.resized.observe(element);
  }

  /** Begin a new arrangement: cards that `card` does not return before `end` are removed. */
  begin(): void {
    this.shown = new Map();
  }

  /** The card of a chart. An existing card keeps its plot. */
  card(source: ChartSource): HTMLElement {
    const { title } = source;
    const existing = this.cards.get(title);
    const card = existing ?? new ChartCard(source, this.events, false, this.showsLegend);
    this.shown.set(title, card);
    if (!existing) {
      this.cells.set(card.element, card);
      this.observer.observe(card.element);
    }
    return card.element;
  }

  /** Free the cards that are no longer shown, and draw those in sight. */
  end(): void {
    for (const [title, card] of this.cards) {
      if (this.shown.get(title) === card) continue;
      card.sleep();
      this.observer.unobserve(card.element);
      this.cells.delete(card.element);
    }
    this.cards = this.shown;
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

  private onSight(entries: IntersectionObserverEntry[]): void {
    const cards = (inSight: boolean) =>
      entries.filter(({ isIntersecting }) => isIntersecting === inSight).flatMap(({ target }) => this.cells.get(target) ?? []);
    for (const card of cards(false)) card.sleep();
    this.wake(cards(true));
  }
}
