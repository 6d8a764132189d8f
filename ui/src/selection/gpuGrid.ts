// A cell for each GPU of the run, so that idle GPUs are easy to spot, also among 512.

import { fill, h } from "../base/dom";
import { counted } from "../base/format";
import { remember } from "../base/remember";
import * as api from "../data/api";
import type { RunSelection } from "./runSelection";

const BUSY = "hw.gpu.utilization";
const MEMORY = "hw.gpu.memory.utilization";
/** Utilization below which a GPU counts as idle. */
const IDLE = 0.1;
const REFRESH_MS = 5000;

interface Gpu {
  name: string;
  busy: number;
  memory: number;
}

export class GpuGrid {
  readonly element = h("section", { class: "fleet", "aria-label": "GPUs by node" });
  private timer = 0;

  constructor(private readonly selection: RunSelection) {
    void this.read();
  }

  /** Read new values, at most every few seconds. */
  scheduleRead(): void {
    if (this.timer) return;
    this.timer = window.setTimeout(() => {
      this.timer = 0;
      void this.read();
    }, REFRESH_MS);
  }

  close(): void {
    clearTimeout(this.timer);
  }

  private async read(): Promise<void> {
    const [run = ""] = this.selection.ids;
    const { project } = this.selection;
    try {
      const { series } = await api.series({ runs: [api.reference(project, run)], metrics: [BUSY, MEMORY], x: "time", max_points: 4 });
      if (series.some(({ metric }) => metric === BUSY)) this.draw(this.nodes(series));
    } catch {
      // The charts below show the error.
    }
  }

  private nodes(series: api.Line[]): [string, [string, Gpu][]][] {
    const hosts = new Map(this.selection.single?.processes.map(({ id, host }) => [id, host ?? id]));
    const nodes = new Map<string, Map<string, Gpu>>();
    for (const line of series) {
      const node = hosts.get(line.process) ?? line.process;
      const gpus = remember(nodes, node, () => new Map());
      const id = String(line.attributes["hw.id"] ?? line.process);
      const gpu = remember(gpus, id, () => ({ name: String(line.attributes["hw.name"] ?? id), busy: Number.NaN, memory: Number.NaN }));
      const last = line.y[line.y.length - 1] as number;
      if (line.metric === BUSY) gpu.busy = last;
      else gpu.memory = last;
    }
    return [...nodes]
      .map(([node, gpus]): [string, [string, Gpu][]] => [node, [...gpus].sort(([a], [b]) => natural(a, b))])
      .sort(([a], [b]) => natural(a, b));
  }

  private draw(nodes: [string, [string, Gpu][]][]): void {
    const gpus = nodes.flatMap(([, gpus]) => gpus);
    const idle = gpus.filter(([, { busy }]) => busy < IDLE).length;
    const words = [`${gpus.length} on ${counted(nodes.length, "node")}`, idle ? `${idle} idle` : ""].filter(Boolean).join(", ");
    fill(
      this.element,
      h("h2", {}, "GPUs by node ", h("span", { class: "muted" }, `${words}; percent busy, last reading`)),
      ...nodes.map(([node, nodeGpus]) => h("div", { class: "node" }, h("span", { class: "name", title: node }, node), h("div", { class: "gpus" }, ...nodeGpus.map(cell)))),
    );
  }
}

function cell([id, { name, busy, memory }]: [string, Gpu]): HTMLElement {
  const isKnown = Number.isFinite(busy);
  const percent = Math.round(busy * 100);
  const words = [`${name} ${id}: ${isKnown ? `${percent} % busy` : "unknown"}`, Number.isFinite(memory) ? `${Math.round(memory * 100)} % of memory` : ""];
  const text = words.filter(Boolean).join(", ");
  const element = h("span", { class: `gpu${busy < IDLE ? " idle" : ""}`, title: text, role: "img", "aria-label": text }, isKnown ? percent : "?");
  element.style.setProperty("--busy", `${isKnown ? percent : 0}%`);
  return element;
}

function natural(a: string, b: string): number {
  return a.localeCompare(b, "en", { numeric: true });
}
