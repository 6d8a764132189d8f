// Finds the lines of a log that match a search: among the loaded lines, or else on the server.

import * as format from "../base/format";
import type { LogWindow } from "../data/logWindow";
import { textOf } from "../data/logs";
import { momentOf } from "./logRow";

export interface FinderEvents {
  /** Indices of the first and last line that are visible. */
  visible: () => { first: number; last: number };
  /** Show a line that is loaded. */
  reveal: (id: string) => void;
  /** Load the lines around a line, and show it. */
  open: (id: string) => Promise<void>;
  /** Show the number of matches, or what the search is doing. */
  count: (words: string) => void;
}

export class LogFinder {
  search = "";
  /** ID of the line that was revealed last. */
  current = "";
  /** Indices of the loaded lines that match; null if the lines or the search have changed since. */
  private matches: number[] | null = null;

  constructor(
    private readonly window: LogWindow,
    private readonly events: FinderEvents,
  ) {}

  /** Forget the matches, because the lines or the search have changed, and show their number. */
  update(search = this.search): void {
    this.search = search;
    this.matches = null;
    this.drawCount();
  }

  drawCount(): void {
    if (!this.search || !this.window.loaded) return this.events.count("");
    const matches = this.matching();
    const isComplete = this.window.atStart && this.window.atEnd;
    const place = matches.findIndex((index) => this.window.lines[index]?.id === this.current);
    const total = `${matches.length.toLocaleString()}${isComplete ? "" : "+"}`;
    this.events.count(place >= 0 ? `${place + 1} of ${total}` : matches.length || !isComplete ? total : "none");
  }

  /** Go to the previous or next match. */
  async jump(direction: "older" | "newer"): Promise<void> {
    if (!this.search) return;
    const { lines } = this.window;
    const matches = this.matching();
    const at = lines.findIndex(({ id }) => id === this.current);
    const { first, last } = this.events.visible();
    const from = at >= 0 && matches.includes(at) ? at : direction === "older" ? last + 1 : first - 1;
    const index = direction === "older" ? matches.findLast((match) => match < from) : matches.find((match) => match > from);
    if (index !== undefined) {
      this.events.reveal(lines[index]?.id ?? "");
      return this.drawCount();
    }
    const edge = direction === "older" ? lines[0] : lines.at(-1);
    if (!edge || (direction === "older" ? this.window.atStart : this.window.atEnd)) return;
    this.events.count("searching …");
    try {
      const match = await this.window.find(this.search, edge.id, direction, (position) => this.events.count(`at ${momentOf(position).slice(0, 19)} …`));
      if (match) await this.events.open(match);
      this.drawCount();
      if (!match) this.events.count(`no ${direction} match`);
    } catch (error) {
      this.events.count(format.message(error));
    }
  }

  private matching(): number[] {
    if (!this.matches) {
      const needle = this.search.toLowerCase();
      this.matches = needle ? this.window.lines.flatMap((line, index) => (textOf(line).toLowerCase().includes(needle) ? [index] : [])) : [];
    }
    return this.matches;
  }
}
