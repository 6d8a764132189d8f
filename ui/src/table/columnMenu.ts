// Menu of a column in the runs table.

import { button, fill, h } from "../base/dom";
import * as route from "../base/route";
import { quoteField } from "./columns";

export interface ColumnEvents {
  filterBy: (key: string) => void;
  hide: (key: string) => void;
}

export class ColumnMenu {
  readonly element = h("div", { class: "menu floating", role: "menu", popover: "auto" });

  constructor(private readonly events: ColumnEvents) {}

  open(key: string, anchor: HTMLElement): void {
    const field = key.startsWith("summary.") && !/\.(value|last|min|max|mean|count|last_step)$/.test(key) ? `${key}.value` : key;
    const sortable = quoteField(field);
    const pinned = new Set(route.list(route.current().params, "pin"));
    const item = (label: string, action: () => void) =>
      button(
        label,
        () => {
          this.element.hidePopover();
          action();
        },
        { role: "menuitem" },
      );
    const movable = key !== "name";
    fill(
      this.element,
      !key.startsWith("spark.") && item("Sort ascending", () => route.change({ sort: sortable })),
      !key.startsWith("spark.") && item("Sort descending", () => route.change({ sort: `-${sortable}` })),
      !/^(spark|summary)\.|^(last_time|started|duration|notes|id|name)$/.test(key) && item("Group by this", () => route.change({ group: key })),
      !key.startsWith("spark.") && item("Filter by this …", () => this.events.filterBy(field)),
      movable &&
        item(pinned.has(key) ? "Unpin" : "Pin to the left", () => {
          if (!pinned.delete(key)) pinned.add(key);
          route.change({ pin: route.join(pinned) });
        }),
      movable && item("Hide", () => this.events.hide(key)),
    );
    this.element.showPopover();
    const box = anchor.getBoundingClientRect();
    this.element.style.left = `${Math.min(box.left, innerWidth - this.element.offsetWidth - 8)}px`;
    this.element.style.top = `${box.bottom + 2}px`;
    this.element.querySelector("button")?.focus();
  }
}
