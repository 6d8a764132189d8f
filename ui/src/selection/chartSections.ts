// Charts in a few named sections, which are all in memory.

import { arrange, button, drawing, fill, h } from "../base/dom";
import type { ChartCardEvents, ChartSource } from "../chart/chartCard";
import { ChartDeck } from "./chartDeck";

export interface Section {
  name: string;
  sources: ChartSource[];
  /** Whether its charts take the full width. */
  spread?: boolean;
}

export class ChartSections {
  readonly element = h("div", { class: "sections" });
  private readonly deck: ChartDeck;
  private shape = "";

  constructor(
    events: ChartCardEvents,
    private readonly onFold: (closed: string[]) => void,
  ) {
    this.deck = new ChartDeck(this.element, events, true);
  }

  /** Show these sections. Existing cards keep their plots. */
  update(all: Section[], closed: string[]): void {
    const shape = JSON.stringify([all.map(({ name, sources }) => [name, sources.map(({ title }) => title)]), closed]);
    if (shape === this.shape) return;
    this.shape = shape;
    this.deck.begin();
    fill(this.element, ...all.map((section) => this.section(section, closed)));
    this.deck.end();
  }

  /** Read the points of visible charts again. */
  refresh(): void {
    this.deck.refresh();
  }

  redraw(): void {
    this.deck.redraw();
  }

  close(): void {
    this.deck.close();
  }

  private section({ name, sources, spread }: Section, closed: string[]): HTMLElement {
    const open = !closed.includes(name);
    const toggle = button("", () => this.onFold(open ? [...closed, name] : closed.filter((other) => other !== name)), { "aria-expanded": String(open), class: "fold" });
    toggle.append(drawing(open ? "down" : "right"), name, h("span", { class: "muted" }, sources.length));
    const grid = h("div", { class: spread ? "charts spread" : "charts" });
    if (open) arrange(grid, sources.map((source) => this.deck.card(source)));
    return h("section", { class: "section" }, h("h2", {}, toggle), grid);
  }
}
