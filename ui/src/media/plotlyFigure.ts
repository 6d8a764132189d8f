// Draws Plotly figures without Plotly, whose library is larger than the whole page: lines, markers, bars, histograms and heatmaps on
// linear, logarithmic, category and date axes. Other traces are named, and the figure can be saved as JSON.

import { append, button, h } from "../base/dom";
import { download } from "../base/download";
import * as format from "../base/format";
import { figureView, plain } from "./figureView";
import { type Json, kindOfTrace, object, readTrace, text } from "./plotlyTraces";

const MAX_TRACES = 100;

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
  if (drawn.length) append(element, figureView({ name: title || key, traces: drawn, layout }, words));
  if (!drawn.length && !others.length) words.push("This figure has no data");
  if (data.length > MAX_TRACES) words.push(`${format.count(data.length - MAX_TRACES)} more traces are not drawn here`);
  if (others.length) words.push(`Not drawn here: ${[...new Set(others)].join(", ")}`);
  append(element, [h("p", { class: "remark" }, words.length ? `${words.join(". ")}. ` : "", save)]);
  return element;
}
