// Logged images, videos, audio, figures, HTML, tables and texts by step.

import { arrange, fill, h, setText, setValue } from "../base/dom";
import * as format from "../base/format";
import { remember } from "../base/remember";
import * as api from "../data/api";
import type { Update } from "../data/live";
import { type Kind, KINDS, kindOf, MAX_CHARACTERS } from "../data/media";
import { matcher } from "../selection/metricSections";
import type { RunSelection } from "../selection/runSelection";
import type { MediaCard } from "../media/mediaCard";
import { searchField } from "../widgets/searchField";
import type { Pane } from "./pane";

/** Kinds of items by the title of their section. */
const SHELVES: [string, Kind[]][] = [
  ["Images", ["image", "images"]],
  ["Videos", ["video"]],
  ["Audio", ["audio"]],
  ["Figures", ["figure"]],
  ["HTML", ["html"]],
  ["Tables", ["table"]],
  ["Texts", ["text"]],
];
const TITLES = new Map(SHELVES.flatMap(([title, kinds]) => kinds.map((kind) => [kind, title])));
/** Number of items that are listed per kind, the newest ones. */
const MAX_EVENTS = 500;

interface Group {
  key: string;
  title: string;
  /** Events from oldest to newest. */
  events: api.TelemetryEvent[];
}

export class MediaPane implements Pane {
  readonly element = h("div", { class: "pane" });
  private readonly search = searchField("media");
  private readonly shelves = new Map(SHELVES.map(([title, kinds]) => [title, new Shelf(title, kinds[0] as Kind)]));
  private readonly message = h("div", {}, h("p", { class: "state", role: "status" }, "Loading …"));
  private readonly cards = new Map<string, MediaCard>();
  private groups: Group[] | null = null;
  private card: typeof MediaCard | null = null;
  private params = new URLSearchParams();
  private isLoading = false;
  private isStale = false;
  private isClosed = false;

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
    this.isClosed = true;
    for (const card of this.cards.values()) card.close();
  }

  /** Read the newest items, one read at a time. */
  private async load(): Promise<void> {
    this.isStale = this.isLoading;
    if (this.isLoading || this.isClosed) return;
    this.isLoading = true;
    const [run = ""] = this.selection.ids;
    const { project } = this.selection;
    try {
      const answers = await Promise.all(KINDS.map((kind) => api.events(run, { project, name: `tensormeter.${kind}`, limit: MAX_EVENTS, max_body: MAX_CHARACTERS })));
      // Loaded when it is needed, because most runs have no media.
      this.card = (await import("../media/mediaCard")).MediaCard;
      const groups = new Map<string, Group>();
      for (const [position, events] of answers.entries()) {
        const kind = KINDS[position] as Kind;
        const title = TITLES.get(kind) ?? "";
        if (events.length === MAX_EVENTS) this.shelves.get(title)?.setNote(`the newest ${MAX_EVENTS}`);
        for (const event of withoutRepeats(events).reverse()) {
          const key = String(event.attributes["tensormeter.key"] ?? kind);
          remember(groups, `${title} ${key}`, (): Group => ({ key, title, events: [] })).events.push(event);
        }
      }
      for (const { events } of groups.values()) events.sort((a, b) => (BigInt(a.time) < BigInt(b.time) ? -1 : 1));
      this.groups = [...groups.values()].sort((a, b) => (a.key < b.key ? -1 : 1));
      this.draw();
    } catch (error) {
      fill(this.message, h("div", { class: "state", role: "alert" }, h("h2", {}, "Could not load media"), h("p", {}, format.message(error))));
    } finally {
      this.isLoading = false;
      if (this.isStale) void this.load();
    }
  }

  private draw(): void {
    const { groups, card: Card } = this;
    if (!groups || !Card) return;
    const matches = matcher(this.params.get("q") ?? "");
    const matching = groups.filter(({ key }) => matches(key));
    const [run = ""] = this.selection.ids;
    const cards = matching.map(({ key, title, events }): [string, HTMLElement] => {
      const make = () =>
        new Card(
          key,
          kindOf(events.at(-1) as api.TelemetryEvent),
          (digest) => api.media(run, digest, this.selection.project),
          (event) => bodyOf(run, this.selection.project, event),
        );
      const card = remember(this.cards, `${title} ${key}`, make);
      card.update(events);
      return [title, card.element];
    });
    for (const [title, shelf] of this.shelves) shelf.show(cards.filter(([of]) => of === title).map(([, element]) => element));
    if (cards.length) fill(this.message);
    else {
      fill(
        this.message,
        h(
          "div",
          { class: "state" },
          h("h2", {}, groups.length ? "No matching media" : "No media yet"),
          groups.length ? null : h("p", {}, "Log images, tables, texts, videos, audio, figures or HTML together with your metrics: ", h("code", {}, 'run.log({"samples": tensormeter.Image(array)}, step)'), "."),
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

/** Leave out the first event of a text that was logged again without a change: the second one has all of its steps. Newest first. */
function withoutRepeats(events: api.TelemetryEvent[]): api.TelemetryEvent[] {
  const repeated = new Set<string>();
  const keyOf = (event: api.TelemetryEvent, step: unknown, text: unknown) => JSON.stringify([event.process, event.attributes["tensormeter.key"], step, text]);
  return events.filter((event) => {
    const body = event.body as { text?: unknown; first_step?: unknown } | null;
    if (body?.first_step !== undefined) repeated.add(keyOf(event, body.first_step, body.text));
    else if (body?.text !== undefined) return !repeated.delete(keyOf(event, event.step, body.text));
    return true;
  });
}

/** A section with all items of one or two kinds. */
class Shelf {
  readonly element: HTMLElement;
  private readonly grid: HTMLElement;
  private readonly words = h("span", { class: "muted" });

  constructor(title: string, kind: Kind) {
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
