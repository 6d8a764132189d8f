// Logged images by step, tables and texts.

import { arrange, fill, h, setText, setValue } from "../base/dom";
import * as format from "../base/format";
import { remember } from "../base/remember";
import * as api from "../data/api";
import type { Update } from "../data/live";
import { matcher } from "../selection/metricSections";
import type { RunSelection } from "../selection/runSelection";
import { picture } from "../widgets/lightbox";
import { MediaTable } from "../widgets/mediaTable";
import { searchField } from "../widgets/searchField";
import type { Pane } from "./pane";

type Kind = "image" | "table" | "text";

const SHELVES: [Kind, string][] = [
  ["image", "Images"],
  ["table", "Tables"],
  ["text", "Texts"],
];
/** Number of items that are listed per kind, the newest ones. */
const MAX_EVENTS = 500;
/** Size up to which bodies are part of the list, in characters. Larger ones are read one by one when they are shown. */
const MAX_CHARACTERS = 20_000;

interface Group {
  key: string;
  kind: Kind;
  /** Events from oldest to newest. */
  events: api.TelemetryEvent[];
}

export class MediaPane implements Pane {
  readonly element = h("div", { class: "pane" });
  private readonly search = searchField("media");
  private readonly shelves = new Map(SHELVES.map(([kind, title]) => [kind, new Shelf(kind, title)]));
  private readonly message = h("div", {}, h("p", { class: "state", role: "status" }, "Loading …"));
  private readonly cards = new Map<string, MediaCard>();
  private groups: Group[] | null = null;
  private params = new URLSearchParams();

  constructor(private readonly selection: RunSelection) {
    this.element.append(h("div", { class: "content" }, h("div", { class: "controls", role: "search" }, this.search), this.message, ...[...this.shelves.values()].map(({ element }) => element)));
    void this.load();
  }

  apply(params: URLSearchParams): void {
    this.params = params;
    setValue(this.search, params.get("q") ?? "");
    this.draw();
  }

  onUpdate(update: Update): void {
    if (update.events) void this.load();
  }

  close(): void {
    for (const card of this.cards.values()) card.close();
  }

  private async load(): Promise<void> {
    const [run = ""] = this.selection.ids;
    const { project } = this.selection;
    try {
      const kinds = SHELVES.map(([kind]) => kind);
      const answers = await Promise.all(kinds.map((kind) => api.events(run, { project, name: `tensormeter.${kind}`, limit: MAX_EVENTS, max_body: MAX_CHARACTERS })));
      const groups = new Map<string, Group>();
      for (const [position, events] of answers.entries()) {
        const kind = kinds[position] as Kind;
        this.shelves.get(kind)?.setNote(events.length < MAX_EVENTS ? "" : `the newest ${MAX_EVENTS}`);
        for (const event of [...events].reverse()) {
          const key = String(event.attributes["tensormeter.key"] ?? kind);
          remember(groups, `${kind} ${key}`, (): Group => ({ key, kind, events: [] })).events.push(event);
        }
      }
      this.groups = [...groups.values()].sort((a, b) => (a.key < b.key ? -1 : 1));
      this.draw();
    } catch (error) {
      fill(this.message, h("div", { class: "state", role: "alert" }, h("h2", {}, "Could not load media"), h("p", {}, format.message(error))));
    }
  }

  private draw(): void {
    if (!this.groups) return;
    const matches = matcher(this.params.get("q") ?? "");
    const matching = this.groups.filter(({ key }) => matches(key));
    const [run = ""] = this.selection.ids;
    const cards = matching.map(({ key, kind, events }): [Kind, HTMLElement] => {
      const make = () =>
        new MediaCard(
          key,
          kind,
          (digest) => api.media(run, digest, this.selection.project),
          (event) => bodyOf(run, this.selection.project, event),
        );
      const card = remember(this.cards, `${kind} ${key}`, make);
      card.update(events);
      return [kind, card.element];
    });
    for (const [kind, shelf] of this.shelves) shelf.show(cards.filter(([of]) => of === kind).map(([, element]) => element));
    if (cards.length) fill(this.message);
    else {
      fill(
        this.message,
        h(
          "div",
          { class: "state" },
          h("h2", {}, this.groups.length ? "No matching media" : "No tables, images or texts yet"),
          this.groups.length ? null : h("p", {}, "Log them together with your metrics: ", h("code", {}, 'run.log({"samples": tensormeter.Image(array)}, step)'), "."),
        ),
      );
    }
  }
}

/** Read the body of one event. */
async function bodyOf(run: string, project: string, { id, name, time }: api.TelemetryEvent): Promise<unknown> {
  const events = await api.events(run, { project, name, start: time, stop: String(BigInt(time) + 1n) });
  return events.find((event) => event.id === id)?.body ?? null;
}

/** A section with all items of one kind. */
class Shelf {
  readonly element: HTMLElement;
  private readonly grid: HTMLElement;
  private readonly words = h("span", { class: "muted" });

  constructor(kind: Kind, title: string) {
    this.grid = h("div", { class: `charts shelf ${kind}s` });
    this.element = h("section", { class: "section", "aria-label": title, hidden: true }, h("h2", {}, title, " ", this.words), this.grid);
  }

  setNote(words: string): void {
    setText(this.words, words);
  }

  show(cards: HTMLElement[]): void {
    this.element.hidden = cards.length === 0;
    arrange(this.grid, cards);
  }
}

class MediaCard {
  readonly element: HTMLElement;
  private readonly stage = h("div", { class: "stage media" });
  private readonly slider = h("input", { type: "range", min: 0, value: 0, "aria-label": "Step", on: { input: () => void this.draw() } });
  private readonly words = h("p", { class: "remark" });
  private readonly sliderLabel: HTMLElement;
  private events: api.TelemetryEvent[] = [];
  private readonly urls = new Map<string, Promise<string>>();
  private turn = 0;
  private large: { id: number; body: Promise<unknown> } | null = null;

  constructor(
    key: string,
    private readonly kind: Kind,
    private readonly open: (digest: string) => Promise<string>,
    private readonly read: (event: api.TelemetryEvent) => Promise<unknown>,
  ) {
    this.sliderLabel = h("label", { class: "slider" }, "step ", this.slider);
    this.element = h("section", { class: `card ${kind}`, "aria-label": key }, h("header", {}, h("h3", { title: key }, key)), this.stage, this.sliderLabel, this.words);
  }

  update(events: api.TelemetryEvent[]): void {
    const atEnd = Number(this.slider.value) >= this.events.length - 1;
    const hasChanged = events.length !== this.events.length;
    this.events = events;
    this.slider.max = String(events.length - 1);
    this.sliderLabel.hidden = events.length < 2;
    if (atEnd) this.slider.value = this.slider.max;
    if (hasChanged) void this.draw();
  }

  close(): void {
    // Later, because a picture may still be loading its address.
    for (const url of this.urls.values()) url.then((address) => setTimeout(() => URL.revokeObjectURL(address), 10_000), () => {});
  }

  private async draw(): Promise<void> {
    const event = this.events[Number(this.slider.value)];
    if (!event) return;
    const turn = ++this.turn;
    let body: Record<string, unknown>;
    try {
      body = ((event.body === null && event.size > MAX_CHARACTERS ? await this.fullBody(event) : event.body) ?? {}) as Record<string, unknown>;
    } catch (error) {
      if (turn === this.turn) fill(this.stage, h("p", { class: "status bad" }, format.message(error)));
      return;
    }
    if (turn !== this.turn) return;
    const step = event.step === null ? "" : `step ${event.step}`;
    this.slider.setAttribute("aria-valuetext", step);
    const words = [step, format.moment(format.epoch(event.time))];
    if (this.kind === "image") {
      words.push(String(body.caption ?? ""), body.width ? `${body.width} × ${body.height}` : "");
      const digest = (body.digest ?? (body.data as { digest?: unknown } | null)?.digest) as string | undefined;
      try {
        const caption = String(body.caption || this.element.getAttribute("aria-label") || "image");
        const image = h("img", { alt: caption });
        if (digest) image.src = await this.address(digest);
        if (turn !== this.turn) return;
        fill(this.stage, digest ? picture(image, caption) : h("p", { class: "status" }, "This image format is not supported."));
      } catch (error) {
        fill(this.stage, h("p", { class: "status bad" }, format.message(error)));
      }
    } else if (this.kind === "text") {
      fill(this.stage, h("pre", { class: "text", tabindex: 0 }, String(body.text ?? "")));
    } else {
      fill(this.stage, new MediaTable(body.columns, body.rows, (digest) => this.address(digest)).element);
    }
    this.words.textContent = words.filter(Boolean).join(" · ");
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

  private address(digest: string): Promise<string> {
    return remember(this.urls, digest, () => this.open(digest));
  }
}
