// Exports a chart as PNG, SVG or CSV.

import { svg } from "../base/dom";
import * as format from "../base/format";
import { color } from "../base/theme";
import type { Band, Curve } from "./curve";
import { type Scale, linePath, marks, scale } from "./paint";
import { MARK, MARK_LINE, type Plot, type Trace, type ChartView } from "./plot";

export function toPng(title: string, plot: Plot, traces: Trace[]): Promise<Blob | null> {
  const source = plot.canvas;
  if (!source) return Promise.resolve(null);
  const ratio = devicePixelRatio || 1;
  const legend = traces.length > 1 ? traces.slice(0, 12) : [];
  const canvas = document.createElement("canvas");
  canvas.width = source.width;
  canvas.height = source.height + (28 + legend.length * 18) * ratio;
  const context = canvas.getContext("2d");
  if (!context) return Promise.resolve(null);
  context.fillStyle = color("panel");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = color("ink");
  context.font = `600 ${13 * ratio}px system-ui, sans-serif`;
  context.fillText(title, 12 * ratio, 19 * ratio);
  context.drawImage(source, 0, 28 * ratio);
  context.font = `${11 * ratio}px system-ui, sans-serif`;
  for (const [row, trace] of legend.entries()) {
    const y = source.height + (28 + row * 18 + 10) * ratio;
    context.fillStyle = trace.color;
    context.fillRect(12 * ratio, y - 8 * ratio, 10 * ratio, 10 * ratio);
    context.fillStyle = color("ink");
    context.fillText(trace.label, 28 * ratio, y);
  }
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

export function toCsv(view: ChartView): Blob {
  const quote = (text: string) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  // Quote names that a spreadsheet would evaluate as a formula.
  const safe = (text: string) => quote(/^[=+\-@\t\r]/.test(text) ? `'${text}` : text);
  const banded = view.traces.some(({ band }) => band);
  const rows = [`${safe(view.xLabel)},series,value,smoothed${banded ? ",low,high" : ""}`];
  for (const trace of view.traces) {
    const { x, y } = trace.raw ?? trace;
    const spread = ({ low, high }: Band, i: number) => `,${low[i]},${high[i]}`;
    for (let i = 0; i < x.length; i++) rows.push(`${x[i]},${safe(trace.label)},${y[i]},${trace.raw ? trace.y[i] : ""}${trace.band ? spread(trace.band, i) : banded ? ",," : ""}`);
  }
  return new Blob([`${rows.join("\n")}\n`], { type: "text/csv" });
}

export function toSvg(title: string, view: ChartView, plot: Plot): Blob {
  const { x, y, box } = plot.ranges;
  const top = box.top + 28;
  const bottom = top + box.height;
  const width = box.left + box.width + 14;
  const height = bottom + 34 + (view.traces.length > 1 ? view.traces.length * 16 : 0);
  const sx = scale(x.min, x.max, box.left, box.left + box.width, view.xLog);
  const sy = scale(y.min, y.max, bottom, top, view.yLog);
  const root = svg("svg", { xmlns: "http://www.w3.org/2000/svg", viewBox: `0 0 ${width} ${height}`, width, height });
  const text = (at: number, down: number, content: string, more: Record<string, string | number> = {}) => {
    const element = svg("text", { x: at, y: down, fill: color("ink"), "font-size": 11, "font-family": "sans-serif", ...more });
    element.textContent = content;
    return element;
  };
  root.append(svg("rect", { width, height, fill: color("panel") }), text(12, 18, title, { "font-size": 13, "font-weight": 600 }));
  for (let tick = 0; tick <= 4; tick++) {
    const share = tick / 4;
    const down = bottom - (bottom - top) * share;
    const along = box.left + box.width * share;
    root.append(
      svg("line", { x1: box.left, x2: box.left + box.width, y1: down, y2: down, stroke: color("grid") }),
      text(box.left - 6, down + 4, format.number(interpolate(y.min, y.max, share, view.yLog)), { "text-anchor": "end" }),
      text(along, bottom + 16, position(interpolate(x.min, x.max, share, view.xLog), view), { "text-anchor": "middle" }),
    );
  }
  for (const [row, trace] of view.traces.entries()) {
    if (trace.band) {
      const upper = [...trace.band.x].map((v, i) => `${sx(v)},${sy(trace.band?.high[i] as number)}`);
      const lower = [...trace.band.x].map((v, i) => `${sx(v)},${sy(trace.band?.low[i] as number)}`).reverse();
      const points = [...upper, ...lower].filter((pair) => !pair.includes("NaN")).join(" ");
      root.append(svg("polygon", { points, fill: trace.color, opacity: 0.18 }));
    }
    if (trace.raw) root.append(path(trace.raw, sx, sy, trace.color, 0.3));
    root.append(path(trace, sx, sy, trace.color, 1));
    const { shapes } = marks(trace.raw ?? trace, sx, { ...box, top }, MARK);
    if (shapes.length) root.append(svg("path", { d: shapes.join(""), fill: color("bad"), stroke: color("bad"), "stroke-width": MARK_LINE, class: "marks" }));
    if (view.traces.length > 1) {
      const down = bottom + 40 + row * 16;
      root.append(svg("rect", { x: 12, y: down - 9, width: 10, height: 10, fill: trace.color }), text(28, down, trace.label));
    }
  }
  return new Blob([new XMLSerializer().serializeToString(root)], { type: "image/svg+xml" });
}

function path(curve: Curve, sx: Scale, sy: Scale, stroke: string, opacity: number): SVGElement {
  return svg("path", { d: linePath(curve, sx, sy, 2), fill: "none", stroke, "stroke-width": 1.5, opacity, "stroke-linejoin": "round" });
}

function interpolate(min: number, max: number, share: number, log: boolean): number {
  return log ? min * (max / min) ** share : min + (max - min) * share;
}

function position(value: number, view: ChartView): string {
  if (view.xKind === "duration" && value >= 1) return format.duration(value);
  return view.xKind === "time" ? new Date(value * 1000).toLocaleTimeString() : format.number(value);
}
