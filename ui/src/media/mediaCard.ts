// A card with the media that were logged under one key, and a slider over their steps.

import { button, fill, h } from "../base/dom";
import * as format from "../base/format";
import { remember } from "../base/remember";
import * as tooltip from "../base/tooltip";
import type * as api from "../data/api";
import { type Kind, kindOf, MAX_CHARACTERS } from "../data/media";
import { type Loader, mediaContent } from "./mediaContent";

export class MediaCard {
  readonly element: HTMLElement;
  private readonly stage = h("div", { class: "stage media" });
  private readonly slider = h("input", { type: "range", min: 0, value: 0, "aria-label": "Step", on: { input: () => void this.draw() } });
  private readonly words = h("p", { class: "remark" });
  private readonly rows = button("Table", () => this.toggleRows(), { class: "chip", "aria-pressed": "false", hidden: true });
  private readonly sliderLabel: HTMLElement;
  private events: api.TelemetryEvent[] = [];
  private readonly urls = new Map<string, Promise<string>>();
  private turn = 0;
  private large: { id: number; body: Promise<unknown> } | null = null;

  constructor(
    private readonly key: string,
    kind: Kind,
    private readonly open: Loader,
    private readonly read: (event: api.TelemetryEvent) => Promise<unknown>,
  ) {
    this.sliderLabel = h("label", { class: "slider" }, "step ", this.slider);
    this.element = h("section", { class: `card ${kind}`, "aria-label": key }, h("header", {}, h("h3", { title: key }, key), this.rows), this.stage, this.sliderLabel, this.words);
  }

  update(events: api.TelemetryEvent[]): void {
    const atEnd = Number(this.slider.value) >= this.events.length - 1;
    const hasChanged = events.length !== this.events.length || events.at(-1)?.id !== this.events.at(-1)?.id;
    this.events = events;
    this.slider.max = String(events.length - 1);
    this.sliderLabel.hidden = events.length < 2;
    if (atEnd) this.slider.value = this.slider.max;
    if (hasChanged) void this.draw();
  }

  close(): void {
    // Later, because a picture may still be loading its address.
    tooltip.hide();
    for (const url of this.urls.values()) url.then((address) => setTimeout(() => URL.revokeObjectURL(address), 10_000), () => {});
  }

  /** Show the rows of a table instead of its chart, or the chart again. */
  private toggleRows(): void {
    this.rows.setAttribute("aria-pressed", String(this.rows.getAttribute("aria-pressed") !== "true"));
    void this.draw();
  }

  private async draw(): Promise<void> {
    const event = this.events[Number(this.slider.value)];
    if (!event) return;
    const turn = ++this.turn;
    try {
      const body = ((event.body === null && event.size > MAX_CHARACTERS ? await this.fullBody(event) : event.body) ?? {}) as Record<string, unknown>;
      if (turn !== this.turn) return;
      const content = await mediaContent(kindOf(event), this.key, body, (digest) => remember(this.urls, digest, () => this.open(digest)), this.rows.getAttribute("aria-pressed") === "true");
      if (turn !== this.turn) return;
      const steps = stepsOf(event, body);
      this.slider.setAttribute("aria-valuetext", steps);
      this.rows.hidden = !content.hasChart;
      tooltip.hide();
      fill(this.stage, content.element);
      this.words.textContent = [steps, format.moment(format.epoch(event.time)), ...content.words].filter(Boolean).join(" · ");
    } catch (error) {
      if (turn === this.turn) fill(this.stage, h("p", { class: "status bad" }, format.message(error)));
    }
  }

  /** Read the body of an event that was too large for the list. The latest one is cached. */
  private fullBody(event: api.TelemetryEvent): Promise<unknown> {
    if (this.large?.id !== event.id) {
      const body = this.read(event);
      this.large = { id: event.id, body };
      body.catch(() => (this.large = null));
    }
    return this.large?.body ?? Promise.resolve(null);
  }
}

/** The step of an event, or the steps of a text that was logged several times. */
function stepsOf({ step }: api.TelemetryEvent, body: Record<string, unknown>): string {
  if (step === null) return "";
  const count = Number(body.count);
  return count > 1 ? `steps ${body.first_step} to ${step} · logged ${format.count(count)} times` : `step ${step}`;
}
