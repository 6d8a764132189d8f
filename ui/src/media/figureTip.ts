// The tooltip of a figure: the values of the mark at the pointer.

import { fill, h } from "../base/dom";
import * as format from "../base/format";
import type { Value } from "./plotlyAxis";
import type { Hit } from "./plotlyMarks";

let box: HTMLElement | null = null;

export function showTip({ trace, xValue, yValue, value, note }: Hit, [xTitle, yTitle]: [string, string], place: { left: number; top: number }): void {
  box ??= h("div", { class: "tooltip figure-tip", role: "status", "aria-live": "off" });
  if (!box.parentElement) document.body.append(box);
  const swatch = h("i", { class: "swatch" });
  swatch.style.background = trace.color;
  const row = (name: string, content: Value) => h("div", {}, h("span", { class: "note" }, `${name} `), h("span", { class: "value" }, shown(content)));
  fill(
    box,
    value === undefined ? h("div", {}, swatch, " ", trace.name) : null,
    row(xTitle || "x", xValue),
    row(yTitle || "y", yValue),
    value === undefined ? null : row(trace.unit || "value", value),
    note ? h("div", { class: "note" }, note) : null,
  );
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  const left = place.left + 16 + width > innerWidth ? place.left - width - 16 : place.left + 16;
  box.style.left = `${Math.max(4, left)}px`;
  box.style.top = `${Math.max(4, Math.min(place.top + 14, innerHeight - height - 4))}px`;
}

export function hideTip(): void {
  if (box) box.hidden = true;
}

const shown = (value: Value): string => (typeof value === "number" ? format.number(value) : String(value ?? "–").slice(0, 80));
