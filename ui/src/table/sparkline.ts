// Sparklines in cells. Points are read for many visible rows at once, and cached.

import { svg } from "../base/dom";
import { linePath } from "../chart/paint";
import * as api from "../data/api";

const POINTS = 60;
const WIDTH = 110;
const HEIGHT = 24;
const DEBOUNCE_MS = 120;

const cache = new Map<string, api.Line | null>();
interface Entry {
  run: api.Run;
  metric: string;
  cells: Set<HTMLElement>;
}

let queued = new Map<string, Entry>();
const inFlight = new Map<string, Entry>();
let timer = 0;

export function drawSparkline(cell: HTMLElement, run: api.Run, metric: string): void {
  const key = keyOf(run, metric);
  cell.dataset.spark = key;
  const line = cache.get(key);
  if (line !== undefined) {
    paint(cell, line);
    return;
  }
  cell.textContent = "";
  const entry = inFlight.get(key) ?? queued.get(key) ?? { run, metric, cells: new Set() };
  entry.cells.add(cell);
  if (inFlight.has(key)) return;
  queued.set(key, entry);
  clearTimeout(timer);
  timer = window.setTimeout(() => void read(), DEBOUNCE_MS);
}

/** Cache key. The time of the last update is part of it, so that a running run is read again. */
function keyOf(run: api.Run, metric: string): string {
  return JSON.stringify([run.project, run.id, metric, run.last_time]);
}

async function read(): Promise<void> {
  // Skip rows that were scrolled out of sight.
  const entries = [...queued].filter(([key, { cells }]) => [...cells].some((cell) => cell.dataset.spark === key && cell.isConnected));
  queued = new Map();
  for (const [key, entry] of entries) inFlight.set(key, entry);
  for (const [metric, group] of Map.groupBy(entries, ([, entry]) => entry.metric)) {
    try {
      const { series } = await api.series({
        runs: group.map(([, { run }]) => api.reference(run.project, run.id)),
        metrics: [metric],
        x: "step",
        max_points: POINTS,
      });
      for (const [key, { run, cells }] of group) {
        const line = series.find((candidate) => candidate.run === run.id) ?? null;
        cache.set(key, line);
        for (const cell of cells) if (cell.dataset.spark === key) paint(cell, line);
      }
    } catch {
      // Cells stay empty after an error.
    } finally {
      for (const [key] of group) inFlight.delete(key);
    }
  }
}

function paint(cell: HTMLElement, line: api.Line | null): void {
  cell.textContent = "";
  if (!line) return;
  const finite = [...line.y].filter(Number.isFinite);
  const low = Math.min(...finite);
  const high = Math.max(...finite);
  const first = line.x[0] as number;
  const last = line.x[line.x.length - 1] as number;
  const sx = (at: number) => 2 + ((WIDTH - 4) * (at - first)) / (last - first || 1);
  const sy = (value: number) => HEIGHT - 3 - ((HEIGHT - 6) * (value - low)) / (high - low || 1);
  const d = linePath(line, sx, sy, 1);
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT, class: "spark", "aria-hidden": "true" }, svg("path", { d }));
  if (finite.length < line.y.length) drawing.append(svg("circle", { cx: WIDTH - 5, cy: 5, r: 3, class: "bad" }));
  cell.append(drawing);
}
