// Charts in sections by the prefix of their names, drawn when they come into sight.

import type { Metric } from "../api";
import { button, drawing, fill, h } from "../dom";
import { Card, type CardEvents, type Source } from "../chart/card";

const NEAR = "300px";

export interface Section {
  name: string;
  sources: Source[];
}

/** Names as paths: what stands before the first slash is the section. */
export function sections(metrics: Metric[], toSource: (metric: Metric) => Source): Section[] {
  const found = new Map<string, Source[]>();
  for (const metric of metrics) {
    const cut = metric.name.indexOf("/");
    const section = cut > 0 ? metric.name.slice(0, cut) : "";
    const sources = found.get(section) ?? [];
    sources.push(toSource(metric));
    found.set(section, sources);
  }
  // A section for a single chart is mostly empty space.
  const lonely = [...found].filter(([name, sources]) => name && sources.length === 1);
  if (lonely.length > 1) {
    for (const [name] of lonely) found.delete(name);
    const rest = [...(found.get("") ?? []), ...lonely.flatMap(([, sources]) => sources)];
    found.set("", rest.sort((a, b) => (a.title < b.title ? -1 : 1)));
  }
  return [...found].map(([name, sources]) => ({ name, sources })).sort((a, b) => order(a.name) - order(b.name) || (a.name < b.name ? -1 : 1));
}

/** What people look at first stands first. */
function order(name: string): number {
  const position = ["eval", "val", "validation", "train", ""].indexOf(name);
  return position < 0 ? 9 : position;
}

/** A regular expression, or the text itself where it is none. */
export function matcher(text: string): (name: string) => boolean {
  if (!text) return () => true;
  try {
    const expression = new RegExp(text, "i");
    return (name) => expression.test(name);
  } catch {
    const lower = text.toLowerCase();
    return (name) => name.toLowerCase().includes(lower);
  }
}

export class ChartGrid {
  readonly element = h("div", { class: "sections" });
  private cards = new Map<string, Card>();
  private cells = new Map<Element, Card>();
  private shape = "";
  private readonly observer = new IntersectionObserver((entries) => this.onSight(entries), { rootMargin: NEAR });
  private width = 0;
  private readonly resized = new ResizeObserver(() => {
    // The height changes with every word below a chart.
    if (this.width && this.width !== this.element.clientWidth) this.redraw();
    this.width = this.element.clientWidth;
  });

  constructor(
    private readonly events: CardEvents,
    private readonly onFold: (closed: string[]) => void,
    private readonly listed: boolean,
  ) {
    this.resized.observe(this.element);
  }

  /** Show these sections; cards that stay keep their plots. */
  update(all: Section[], closed: string[]): void {
    const shape = JSON.stringify([all.map(({ name, sources }) => [name, sources.map(({ title }) => title)]), closed]);
    if (shape === this.shape) return;
    this.shape = shape;
    const kept = new Map<string, Card>();
    this.observer.disconnect();
    this.cells.clear();
    fill(this.element, ...all.map((section) => this.section(section, all, closed, kept)));
    for (const [title, card] of this.cards) if (!kept.has(title)) card.sleep();
    this.cards = kept;
  }

  /** Read again what is in sight. */
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

  private section(section: Section, all: Section[], closed: string[], kept: Map<string, Card>): HTMLElement {
    const open = !closed.includes(section.name);
    const toggle = button(
      "",
      () => this.onFold(open ? [...closed, section.name] : closed.filter((name) => name !== section.name)),
      { "aria-expanded": String(open), class: "fold" },
    );
    toggle.append(drawing(open ? "down" : "right"), section.name || "charts", h("span", { class: "muted" }, section.sources.length));
    const grid = h("div", { class: "charts" });
    if (open) {
      for (const source of section.sources) {
        const card = this.cards.get(source.title) ?? new Card(source, this.events, false, this.listed);
        kept.set(source.title, card);
        this.cells.set(card.element, card);
        grid.append(card.element);
        this.observer.observe(card.element);
      }
    }
    const heading = all.length > 1 || section.name ? h("h2", {}, toggle) : null;
    return h("section", { class: "section" }, heading, grid);
  }

  private onSight(entries: IntersectionObserverEntry[]): void {
    for (const { target, isIntersecting } of entries) {
      const card = this.cells.get(target);
      if (isIntersecting) card?.wake();
      else card?.sleep();
    }
  }
}
