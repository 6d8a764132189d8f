// Filter of the runs table: a field with completion, and buttons for common clauses.

import { button, fill, fillOnChange, h, setValue } from "../base/dom";
import * as route from "../base/route";
import type { State } from "../data/api";
import * as listing from "../data/metrics";
import { BASIC_KEYS, quoteField, shortLabel } from "./columns";

const COMPLETIONS = 20;
const STATES: State[] = ["running", "stalled", "failed", "crashed", "preempted", "finished"];

export class FilterBar {
  readonly field = h("input", {
    type: "search",
    "data-search": true,
    class: "filter",
    placeholder: 'Filter, for example: state = "running" and config.lr > 1e-4',
    "aria-label": "Filter runs",
    autocomplete: "off",
    spellcheck: "false",
    list: "fields",
    on: { change: () => route.change({ filter: this.field.value.trim() }), input: () => this.complete() },
  });
  readonly completions = h("datalist", { id: "fields" });
  readonly chips = h("div", { class: "chips" });
  private params = new URLSearchParams();
  private abort = new AbortController();

  /** `newest` returns fields that the server's list may lack. */
  constructor(
    private readonly project: string,
    private readonly newest: () => string[],
  ) {}

  update(params: URLSearchParams): void {
    this.params = params;
    const filter = params.get("filter") ?? "";
    const group = params.get("group");
    setValue(this.field, filter);
    fillOnChange(this.chips, [filter, group], () => [
      ...STATES.map((state) => {
        const clause = `state = "${state}"`;
        const active = filter.includes(clause);
        return button(state, () => (active ? route.change({ filter: withoutClause(filter, clause) }) : this.add(clause)), {
          class: `chip badge ${state}`,
          "aria-pressed": String(active),
        });
      }),
      group ? button(`grouped by ${shortLabel(group)} ✕`, () => route.change({ group: null }), { class: "chip" }) : null,
    ]);
  }

  /** Add a clause to the filter. */
  add(clause: string): void {
    const filter = this.params.get("filter");
    if (filter?.includes(clause)) return;
    const simple = !filter || !/\bor\b/.test(filter);
    route.change({ filter: filter ? `${simple ? filter : `(${filter})`} and ${clause}` : clause });
  }

  /** Start a clause about a field, and let the user type the value. */
  startClause(key: string): void {
    const before = this.field.value.trim();
    this.field.value = `${before ? `${before} and ` : ""}${quoteField(key)} = `;
    this.field.focus();
    this.field.setSelectionRange(this.field.value.length, this.field.value.length);
  }

  /** Offer the fields that start with the last word. */
  private complete(): void {
    const text = this.field.value;
    const [word = ""] = /[\w./-]*$/.exec(text) ?? [];
    const before = text.slice(0, text.length - word.length);
    const inText = (before.match(/"/g)?.length ?? 0) % 2 === 1;
    this.abort.abort();
    this.abort = new AbortController();
    const { signal } = this.abort;
    const offer = (fields: string[]) => {
      const matches = [...new Set([...BASIC_KEYS, "name", ...this.newest(), ...fields])].filter((key) => key.startsWith(word) && key !== word);
      fill(this.completions, ...matches.slice(0, COMPLETIONS).map((key) => h("option", { value: before + quoteField(key) })));
    };
    if (!word || inText) return fill(this.completions);
    offer([]);
    // Without completions, the filter can still be typed.
    listing.fields(this.project, { prefix: word, limit: COMPLETIONS }, signal).then(
      ({ fields }) => signal.aborted || offer(fields),
      () => {},
    );
  }
}

function withoutClause(filter: string, clause: string): string {
  return filter
    .split(" and ")
    .filter((part) => part.trim() !== clause)
    .join(" and ");
}
