// Tooltip of a chart with lines. It shows the values, highest first, the nearest one marked.

import { h } from "../base/dom";
import * as format from "../base/format";
import * as tooltip from "../base/tooltip";
import type { ChartMark } from "./chartMarks";
import type { Reading } from "./plot";

const SHOWN = 24;

/** Number of marks that are named. */
const MARKS = 5;

export function showReadings(title: string, readings: Reading[], unit: string, place: tooltip.Place, marks: ChartMark[] = []): void {
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
  tooltip.show(
    place,
    h("div", { class: "at" }, title),
    h("div", { class: "readings" }, ...rows),
    ordered.length > visible.length && h("div", { class: "note" }, `and ${ordered.length - visible.length} more`),
    ...marks.slice(0, MARKS).map(({ label, note }) => h("div", { class: "mark" }, label, " ", h("span", { class: "note" }, note))),
    marks.length > MARKS && h("div", { class: "note" }, `and ${marks.length - MARKS} more`),
  );
}

function rank(value: number): number {
  return Number.isNaN(value) ? Number.NEGATIVE_INFINITY : value;
}
