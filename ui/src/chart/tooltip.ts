// Tooltip at the pointer. Of the lines of a chart, it shows the values, highest first, the nearest one marked.

import { type Child, fill, h } from "../base/dom";
import * as format from "../base/format";
import type { ChartMark } from "./chartMarks";
import type { Reading } from "./plot";

const SHOWN = 24;
let box: HTMLElement | null = null;

/** Number of marks that are named. */
const MARKS = 5;

/** A place of the pointer, in pixels of the window. */
export interface Place {
  left: number;
  top: number;
}

export function show(title: string, readings: Reading[], unit: string, place: Place, marks: ChartMark[] = []): void {
  const ordered = [...readings].sort((a, b) => rank(b.y) - rank(a.y));
  const visible = ordered.filter(({ nearest }, position) => position < SHOWN || nearest);
  const rows = visible.map((reading) => {
    const swatch = h("i", { class: "swatch" });
    swatch.style.background = reading.color;
    const spread =
      reading.low === undefined || reading.high === undefined
        ? ""
        : `${format.number(reading.low)} to ${format.number(reading.high)}`;
    const bad = Number.isFinite(reading.y) ? "" : " bad";
    return h(
      "div",
      { class: reading.nearest ? "reading nearest" : "reading" },
      swatch,
      h("span", { class: "name" }, reading.label),
      h("span", { class: `value${bad}` }, format.withUnit(reading.y, unit)),
      h("span", { class: "note" }, [spread, reading.note].filter(Boolean).join(" · ")),
    );
  });
  showContent(
    place,
    h("div", { class: "at" }, title),
    h("div", { class: "readings" }, ...rows),
    ordered.length > visible.length && h("div", { class: "note" }, `and ${ordered.length - visible.length} more`),
    ...marks.slice(0, MARKS).map(({ label, note }) => h("div", { class: "mark" }, label, " ", h("span", { class: "note" }, note))),
    marks.length > MARKS && h("div", { class: "note" }, `and ${marks.length - MARKS} more`),
  );
}

export function showContent(place: Place, ...content: Child[]): void {
  box ??= h("div", { class: "tooltip", role: "status", "aria-live": "off" });
  // An open dialog covers everything outside it.
  const parent = document.querySelector("dialog[open]") ?? document.body;
  if (box.parentElement !== parent) parent.append(box);
  fill(box, ...content);
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  const left = place.left + 18 + width > innerWidth ? place.left - width - 18 : place.left + 18;
  box.style.left = `${Math.max(4, left)}px`;
  box.style.top = `${Math.max(4, Math.min(place.top + 12, innerHeight - height - 4))}px`;
}

export function hide(): void {
  if (box) box.hidden = true;
}

function rank(value: number): number {
  return Number.isNaN(value) ? Number.NEGATIVE_INFINITY : value;
}
