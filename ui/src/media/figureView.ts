// Draws the traces of a figure as SVG, as wide as the card is, with a legend and a tooltip at the pointer.

import { h, svg } from "../base/dom";
import * as format from "../base/format";
import * as tooltip from "../base/tooltip";
import { type Axis, type AxisContent, type Value, axisOf, least, most } from "./plotlyAxis";
import { type Hit, MAX_POINTS, barsOf, cells, lineOf } from "./plotlyMarks";
import { type Json, type Trace, binned, ends, object, stack, text } from "./plotlyTraces";

/** Width of a letter and height of a line, in pixels, as estimates. */
const LETTER = 6.6;
const LINE = 14;
/** Width of a turned label, in pixels. */
const TURNED = 22;
/** Maximum length of a label of a category, in letters. */
const MAX_LABEL = 16;
const WIDEST = 760;
const SQUARE = 400;
const MAX_KEYS = 20;
/** Maximum distance of the pointer from a mark whose values are shown, in pixels. */
const REACH = 40;

export interface Figure {
  /** What the figure shows, for readers of the screen. */
  name: string;
  traces: Trace[];
  layout: Json;
  /** Whether both axes have the same length. */
  isSquare?: boolean;
}

interface Box {
  left: number;
  top: number;
  width: number;
  height: number;
}

/** The drawing of a figure and its legend. `words` receives remarks about what is not drawn. */
export function figureView(figure: Figure, words: string[]): (Element | null)[] {
  const traces = binned(figure.traces);
  if (isStacked(figure.layout)) stack(traces);
  let drawing = draw({ ...figure, traces }, WIDEST, words);
  let width = WIDEST;
  const resize = new ResizeObserver(([entry]) => {
    const room = Math.min(WIDEST, Math.floor(entry?.contentRect.width ?? 0));
    if (room < 40 || room === width) return;
    width = room;
    tooltip.hide();
    const next = draw({ ...figure, traces }, width, []);
    drawing.replaceWith(next);
    drawing = next;
  });
  queueMicrotask(() => drawing.parentElement && resize.observe(drawing.parentElement));
  return [drawing, legend(traces)];
}

const isStacked = ({ barmode }: Json) => barmode === "stack" || barmode === "relative";

function draw({ name, traces, layout, isSquare }: Figure, width: number, words: string[]): SVGElement {
  const bars = traces.filter(({ type }) => type === "bar");
  const heat = traces.find(({ type }) => type === "heatmap");
  const isHorizontal = bars.some(({ horizontal }) => horizontal);
  const columns: Value[] = heat?.x.length ? heat.x : (heat?.z[0] ?? []).map((_, column) => column);
  const rows: Value[] = heat?.y.length ? heat.y : (heat?.z ?? []).map((_, row) => row);
  const content = (isLength: boolean): AxisContent => (heat ? "cells" : bars.length === 0 ? "values" : isLength ? "lengths" : "bars");
  const xs = heat ? columns : traces.flatMap((trace) => (trace.horizontal ? ends(trace) : trace.x));
  const ys = heat ? rows : traces.flatMap((trace) => (trace.horizontal ? trace.y : ends(trace)));
  const [xLayout, yLayout] = [object(layout.xaxis), object(layout.yaxis)];
  const names = isHorizontal ? (bars[0]?.y.length ?? 0) * Math.max(1, bars.length) : 0;
  const height = isHorizontal ? Math.min(560, Math.max(200, names * 20)) : Math.min(300, Math.max(200, width * 0.5));
  const yAxis = axisOf(ys, yLayout, content(!isHorizontal), Math.floor((isSquare ? Math.min(SQUARE, width * 0.8) : height) / LINE));
  const [xTitle, yTitle] = [plain(text(xLayout.title)), plain(text(yLayout.title))];
  const yRoom = Math.min(width * 0.3, longest(yAxis) * LETTER);
  const left = 14 + yRoom + (yTitle ? 20 : 0);
  const inner = { width: width - left - 18, height };
  if (isSquare) inner.width = inner.height = Math.min(inner.width, SQUARE);
  const box: Box = { left: isSquare ? Math.max(left, (width - inner.width) / 2) : left, top: 10, ...inner };
  const xAxis = axisOf(xs, xLayout, content(isHorizontal), Math.floor(box.width / TURNED));
  const room = box.width / Math.max(1, xAxis.ticks.length) - 8;
  const isTurned = xAxis.hasNames === true && longest(xAxis) * LETTER > room;
  const foot = isTurned ? 14 + longest(xAxis) * LETTER * 0.65 : 22;
  const px = (value: Value) => box.left + xAxis.place(value) * box.width;
  const py = (value: Value) => box.top + (1 - yAxis.place(value)) * box.height;
  const marks = frame(box, xAxis, yAxis, yRoom, heat === undefined, isTurned);
  const total = box.top + box.height + foot + (xTitle ? 18 : 0);
  if (xTitle) marks.push(label(box.left + box.width / 2, total - 6, xTitle, "middle", box.width));
  if (yTitle) {
    const title = label(0, 0, yTitle, "middle", box.height);
    title.setAttribute("transform", `translate(${box.left - left + 13} ${box.top + box.height / 2}) rotate(-90)`);
    marks.push(title);
  }
  const hits: Hit[] = [];
  const tally: [number, number] = [0, 0];
  const share = isStacked(layout) || layout.barmode === "overlay" ? 1 : bars.length;
  for (const trace of traces) {
    if (trace.type === "heatmap") marks.push(...cells(trace, px, py, columns, rows, box, words, hits));
    else if (trace.type === "bar") marks.push(...barsOf(trace, share === 1 ? 0 : bars.indexOf(trace), share, px, py, box, words, hits));
    else marks.push(...lineOf(trace, Math.ceil(MAX_POINTS / traces.length), px, py, tally, hits));
  }
  const [drawn, all] = tally;
  if (drawn < all) words.push(`${format.count(drawn)} of ${format.count(all)} points are drawn, with the highest and lowest ones`);
  const ring = svg("circle", { r: 5, class: "ring", visibility: "hidden" });
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${total.toFixed(0)}`, role: "img", "aria-label": alternative(name, traces, xTitle, yTitle) }, ...marks, ring);
  const onMove = (event: Event) => point(event as PointerEvent, drawing, ring, hits, width, [xTitle, yTitle]);
  const onLeave = () => {
    tooltip.hide();
    ring.setAttribute("visibility", "hidden");
  };
  for (const type of ["pointermove", "pointerdown"]) drawing.addEventListener(type, onMove);
  for (const type of ["pointerleave", "pointercancel"]) drawing.addEventListener(type, onLeave);
  return drawing;
}

/** Show the values of the mark that is nearest to the pointer. */
function point(event: PointerEvent, drawing: SVGElement, ring: SVGElement, hits: Hit[], width: number, titles: [string, string]): void {
  const { left, top, width: shown } = drawing.getBoundingClientRect();
  const scale = width / (shown || 1);
  const [x, y] = [(event.clientX - left) * scale, (event.clientY - top) * scale];
  let nearest: Hit | null = null;
  let reach = REACH;
  for (const hit of hits) {
    const distance = Math.hypot(Math.max(0, Math.abs(hit.x - x) - hit.wide), Math.max(0, Math.abs(hit.y - y) - hit.high));
    if (distance < reach) [nearest, reach] = [hit, distance];
  }
  const isPoint = nearest !== null && !nearest.wide;
  ring.setAttribute("visibility", isPoint ? "visible" : "hidden");
  if (!nearest) {
    tooltip.hide();
    return;
  }
  if (isPoint) for (const [name, value] of Object.entries({ cx: nearest.x, cy: nearest.y, stroke: nearest.trace.color })) ring.setAttribute(name, String(value));
  tooltip.show({ left: event.clientX, top: event.clientY }, ...valuesOf(nearest, titles));
}

/** The values of a mark, for the tooltip. */
function valuesOf({ trace, xValue, yValue, value, note }: Hit, [xTitle, yTitle]: [string, string]): (Element | null)[] {
  const row = (name: string, content: Value) => h("div", {}, h("span", { class: "note" }, `${name} `), h("span", { class: "value" }, shown(content)));
  return [
    value === undefined ? h("div", {}, swatch(trace.color), " ", trace.name) : null,
    row(xTitle || "x", xValue),
    row(yTitle || "y", yValue),
    value === undefined ? null : row(trace.unit || "value", value),
    note ? h("div", { class: "note" }, note) : null,
  ];
}

const shown = (value: Value): string => (typeof value === "number" ? format.number(value) : String(value ?? "–").slice(0, 80));

/** The labels of the axes and the lines of the grid. `room` is the width of the labels of the y axis. */
function frame(box: Box, xAxis: Axis, yAxis: Axis, room: number, hasGrid: boolean, isTurned: boolean): SVGElement[] {
  const [right, bottom] = [box.left + box.width, box.top + box.height];
  const marks: SVGElement[] = [];
  for (const [place, words] of yAxis.ticks) {
    const y = box.top + (1 - place) * box.height;
    if (hasGrid) marks.push(svg("line", { x1: box.left, x2: right, y1: y, y2: y, class: "grid" }));
    marks.push(label(box.left - 7, y + 4, words, "end", room));
  }
  let free = Number.NEGATIVE_INFINITY;
  for (const [place, words] of xAxis.ticks) {
    const x = box.left + place * box.width;
    if (hasGrid) marks.push(svg("line", { x1: x, x2: x, y1: box.top, y2: bottom, class: "grid" }));
    const half = (Math.min(words.length, MAX_LABEL) * LETTER) / 2;
    if (!isTurned && x - half < free) continue; // it would cover the previous one
    free = x + half + 4;
    const mark = label(x, bottom + 16, words, isTurned ? "end" : "middle");
    if (isTurned) mark.setAttribute("transform", `rotate(-40 ${x} ${bottom + 10})`);
    marks.push(mark);
  }
  return marks;
}

/** A text of limited width in pixels. A longer one loses its middle, because the ends of names differ, and is the title. */
function label(x: number, y: number, content: string, anchor: string, room = MAX_LABEL * LETTER): SVGElement {
  const element = svg("text", { x: x.toFixed(1), y: y.toFixed(1), "text-anchor": anchor });
  const words = plain(content);
  const letters = Math.max(3, Math.floor(room / LETTER));
  element.textContent = words.length > letters ? `${words.slice(0, letters >> 1)}…${words.slice((letters >> 1) + 1 - letters)}` : words;
  if (words.length > letters) {
    const title = svg("title", {});
    title.textContent = words;
    element.append(title);
  }
  return element;
}

const longest = (axis: Axis) => Math.min(MAX_LABEL, most(axis.ticks.map(([, words]) => words.length)));

/** A text without its markup. */
export const plain = (content: string): string => content.replace(/<[^>]*>/g, "");

/** The text that stands for the drawing. */
function alternative(name: string, traces: Trace[], xTitle: string, yTitle: string): string {
  const shown = traces.filter(({ isGuide }) => !isGuide);
  const listed = shown.slice(0, 8).map(keyOf).join(", ");
  const range = (title: string, values: Value[]) => {
    const numbers = values.filter((value) => typeof value === "number");
    return title && numbers.length ? `${title} from ${format.number(least(numbers))} to ${format.number(most(numbers))}` : title;
  };
  const facts = [shown.length > 1 ? `${shown.length} series: ${listed}` : listed, range(xTitle, shown.flatMap(({ x }) => x)), range(yTitle, shown.flatMap(({ y }) => y))];
  return `${name}. ${facts.filter(Boolean).join("; ")}`;
}

const keyOf = ({ name, note }: Trace) => (note ? `${name} · ${note}` : name);

function legend(all: Trace[]): HTMLElement | null {
  const traces = all.filter(({ isGuide }) => !isGuide);
  if (traces.length < 2 && !traces[0]?.note) return null;
  const item = (trace: Trace) => h("li", {}, swatch(trace.color), trace.name, trace.note ? h("span", { class: "muted" }, ` ${trace.note}`) : null);
  const more = traces.length > MAX_KEYS ? h("li", { class: "muted" }, `and ${traces.length - MAX_KEYS} more`) : null;
  return h("ul", { class: "keys" }, ...traces.slice(0, MAX_KEYS).map(item), more);
}

function swatch(color: string): SVGElement {
  return svg("svg", { viewBox: "0 0 12 12", width: 12, height: 12, "aria-hidden": "true" }, svg("rect", { width: 12, height: 12, rx: 2, fill: color }));
}
