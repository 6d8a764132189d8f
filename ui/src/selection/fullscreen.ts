// One chart in full screen. The address names the chart.

import { button, fill, h } from "../base/dom";
import * as route from "../base/route";
import { ChartCard, type ChartCardEvents, type ChartSource } from "../chart/chartCard";

export class FullScreen {
  readonly element = h("dialog", { class: "full", on: { close: () => route.change({ full: null }) } });
  private card: ChartCard | null = null;

  constructor(private readonly events: ChartCardEvents) {}

  /** Show this chart; undefined closes the dialog. */
  show(source: ChartSource | undefined): void {
    if (this.card?.source === source) return;
    this.card?.sleep();
    this.card = null;
    if (!source) {
      if (this.element.open) this.element.close();
      return;
    }
    this.element.setAttribute("aria-label", source.title);
    this.card = new ChartCard(source, this.events, true);
    fill(this.element, button("Close", () => this.element.close(), { class: "close" }), this.card.element);
    if (!this.element.open) this.element.showModal();
    this.card.wake();
  }

  /** Read the points again. */
  refresh(): void {
    void this.card?.refresh();
  }

  close(): void {
    this.card?.sleep();
  }
}
