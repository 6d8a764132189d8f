// Draws Plotly figures without Plotly, whose library is larger than the whole page: lines, markers, bars, histograms and heatmaps on
// linear, logarithmic, category and date axes. Other traces are named, and the figure can be saved as JSON.

import { append, button, h, svg } from "../base/dom";
import { download } from "../base/download";
import * as format from "../base/format";
import { type Axis, type AxisContent, type Value, axisOf } from "./plotlyAxis";
import { MAX_POINTS, barsOf, cells, lineOf } from "./plotlyMarks";
import { type Json, type Trace, binned, ends, kindOfTrace, object, readTrace, stack, text } from "./plotlyTraces";

const WIDTH = 640;
const HEIGHT = 360;
const MARGIN = { left: 62, right: 16, top: 14, bottom: 46 };
const INNER = { width: WIDTH - MARGIN.left - MARGIN.right, height: HEIGHT - MARGIN.top - MARGIN.bottom };
const MAX_TRACES = 100;
const MAX_KEYS = 20;

/** Draw a figure, given as JSON. */
export function plotlyFigure(json: string, key: string): HTMLElement {
  const element = h("div", { class: "plotly" });
  const save = button("Save as JSON", () => download(`${key}.plotly.json`, new Blob([json], { type: "application/json" })), { class: "quiet" });
  let figure: Json;
  try {
    figure = object(JSON.parse(json));
  } catch {
    append(element, [h("p", { class: "status" }, "This figure is not valid JSON."), save]);
    return element;
  }
  const data = (Array.isArray(figure.data) ? figure.data : []).map(object);
  const traces = data.slice(0, MAX_TRACES).map(readTrace);
  const drawn = traces.filter((trace) => trace !== null);
  const others = data.filter((_, index) => traces[index] === null).map(kindOfTrace);
  const layout = object(figure.layout);
  const title = plain(text(layout.title));
  const words: string[] = [];
  if (title) append(element, [h("h4", {}, title)]);
  if (drawn.length) append(element, [draw(drawn, layout, title || key, words)]);
  if (!drawn.length && !others.length) words.push("This figure has no data");
  if (data.length > MAX_TRACES) words.push(`${format.count(data.length - MAX_TRACES)} more traces are not drawn here`);
  if (others.length) words.push(`Not drawn here: ${[...new Set(others)].join(", ")}`);
  append(element, [legend(drawn), h("p", { class: "remark" }, words.length ? `${words.join(". ")}. ` : "", save)]);
  return element;
}

function draw(data: Trace[], layout: Json, name: string, words: string[]): SVGElement {
  const traces = data.map((trace) => (trace.type === "histogram" ? binned(trace) : trace));
  const isStacked = layout.barmode === "stack" || layout.barmode === "relative";
  if (isStacked) stack(traces);
  const bars = traces.filter(({ type }) => type === "bar");
  const heat = traces.find(({ type }) => type === "heatmap");
  const isHorizontal = bars.some(({ horizontal }) => horizontal);
  const columns: Value[] = heat?.x.length ? heat.x : (heat?.z[0] ?? []).map((_, column) => column);
  const rows: Value[] = heat?.y.length ? heat.y : (heat?.z ?? []).map((_, row) => row);
  const content = (isLength: boolean): AxisContent => (heat ? "cells" : bars.length === 0 ? "values" : isLength ? "lengths" : "bars");
  const xs = heat ? columns : traces.flatMap((trace) => (trace.horizontal ? ends(trace) : trace.x));
  const ys = heat ? rows : traces.flatMap((trace) => (trace.horizontal ? trace.y : ends(trace)));
  const xAxis = axisOf(xs, object(layout.xaxis), content(isHorizontal));
  const yAxis = axisOf(ys, object(layout.yaxis), content(!isHorizontal));
  const px = (value: Value) => MARGIN.left + xAxis.place(value) * INNER.width;
  const py = (value: Value) => MARGIN.top + (1 - yAxis.place(value)) * INNER.height;
  const marks = frame(xAxis, yAxis, layout, heat === undefined);
  const share = isStacked || layout.barmode === "overlay" ? 1 : bars.length;
  for (const trace of traces) {
    if (trace.type === "heatmap") marks.push(...cells(trace, px, py, columns, rows, INNER, words));
    else if (trace.type === "bar") marks.push(...barsOf(trace, share === 1 ? 0 : bars.indexOf(trace), share, px, py, INNER));
    else marks.push(...lineOf(trace, Math.ceil(MAX_POINTS / traces.length), px, py, words));
  }
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": name }, ...marks);
}

/** The labels and titles of the axes, and the lines of the grid. */
function frame(xAxis: Axis, yAxis: Axis, layout: Json, hasGrid: boolean): SVGElement[] {
  const [right, bottom] = [WIDTH - MARGIN.right, HEIGHT - MARGIN.bottom];
  const marks: SVGElement[] = [];
  for (const [place, label] of yAxis.ticks) {
    const y = MARGIN.top + (1 - place) * INNER.height;
    if (hasGrid) marks.push(svg("line", { x1: MARGIN.left, x2: right, y1: y, y2: y, class: "grid" }));
    marks.push(svgText(MARGIN.left - 8, y + 4, label, "end"));
  }
  for (const [place, label] of xAxis.ticks) {
    const x = MARGIN.left + place * INNER.width;
    if (hasGrid) marks.push(svg("line", { x1: x, x2: x, y1: MARGIN.top, y2: bottom, class: "grid" }));
    marks.push(svgText(x, bottom + 16, label, "middle"));
  }
  const [xTitle, yTitle] = [text(object(layout.xaxis).title), text(object(layout.yaxis).title)];
  if (xTitle) marks.push(svgText(MARGIN.left + INNER.width / 2, HEIGHT - 8, xTitle, "middle"));
  if (yTitle) {
    const label = svgText(0, 0, yTitle, "middle");
    label.setAttribute("transform", `translate(14 ${MARGIN.top + INNER.height / 2}) rotate(-90)`);
    marks.push(label);
  }
  return marks;
}

function svgText(x: number, y: number, content: string, anchor: string): SVGElement {
  const element = svg("text", { x, y, "text-anchor": anchor });
  element.textContent = plain(content).slice(0, 40);
  return element;
}

/** A text without its markup. */
const plain = (content: string): string => content.replace(/<[^>]*>/g, "");

function legend(traces: Trace[]): HTMLElement | null {
  if (traces.length < 2) return null;
  const item = ({ name, color }: Trace) => h("li", {}, swatch(color), name);
  const more = traces.length > MAX_KEYS ? h("li", { class: "muted" }, `and ${traces.length - MAX_KEYS} more`) : null;
  return h("ul", { class: "keys" }, ...traces.slice(0, MAX_KEYS).map(item), more);
}

function swatch(color: string): SVGElement {
  return svg("svg", { viewBox: "0 0 12 12", width: 12, height: 12, "aria-hidden": "true" }, svg("rect", { width: 12, height: 12, rx: 2, fill: color }));
}
