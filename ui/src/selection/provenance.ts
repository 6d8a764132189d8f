// The code and the artifacts of a single run: panels of the overview, and marks of charts.

import { fill, h } from "../base/dom";
import * as format from "../base/format";
import type { ChartMark } from "../chart/chartMarks";
import * as provenance from "../data/provenance";
import { artifactTable } from "../widgets/artifactTable";
import { codeSection } from "../widgets/codeSection";
import type { RunSelection } from "./runSelection";

/** Minimum time between two reads of the artifacts while events arrive. */
const REFRESH_MS = 5000;

export class Provenance {
  readonly artifactPanel = h("section", { class: "panel", "aria-label": "Artifacts", hidden: true });
  readonly codePanel = h("section", { class: "panel", "aria-label": "Code", hidden: true });
  private artifacts: provenance.Artifact[] = [];
  /** ID of the event whose code is shown. */
  private codeEvent: number | null = null;
  private readAt = Number.NEGATIVE_INFINITY;
  private timer = 0;
  private isClosed = false;

  /** `onMarks` is called when there are other marks than before. Only with `drawsPanels` is the code read. */
  constructor(
    private readonly selection: RunSelection,
    private readonly drawsPanels: boolean,
    private readonly onMarks: () => void = () => {},
  ) {
    this.refresh();
  }

  get panels(): HTMLElement[] {
    return [this.artifactPanel, this.codePanel];
  }

  close(): void {
    this.isClosed = true;
    clearTimeout(this.timer);
  }

  /** Read again, at most every few seconds. */
  refresh(): void {
    if (this.timer) return;
    this.timer = window.setTimeout(
      () => {
        this.timer = 0;
        void this.load();
      },
      Math.max(0, this.readAt + REFRESH_MS - performance.now()),
    );
  }

  /** Charts and the other panels are complete without this, and they show the errors of the server, so these are not repeated. */
  private async load(): Promise<void> {
    this.readAt = performance.now();
    await Promise.allSettled([this.loadArtifacts(), this.drawsPanels ? this.loadCode() : null]);
  }

  private async loadArtifacts(): Promise<void> {
    const { selection } = this;
    const artifacts = await provenance.artifacts(selection.ids[0] ?? "", selection.project);
    if (this.isClosed || JSON.stringify(artifacts) === JSON.stringify(this.artifacts)) return;
    this.artifacts = artifacts;
    const hostOf = (id: string) => selection.single?.processes.find((process) => process.id === id)?.host ?? null;
    this.artifactPanel.hidden = artifacts.length === 0;
    fill(this.artifactPanel, h("h2", {}, "Artifacts"), artifactTable(artifacts, hostOf));
    this.onMarks();
  }

  private async loadCode(): Promise<void> {
    const { ids, project } = this.selection;
    const code = await provenance.code(ids[0] ?? "", project, this.codeEvent);
    if (this.isClosed || !code) return;
    this.codeEvent = code.event;
    this.codePanel.hidden = false;
    fill(this.codePanel, h("h2", {}, "Code"), ...codeSection(code));
  }

  /** The marks of the artifacts on an x axis. There are none along a metric. */
  marks(axis: string): ChartMark[] {
    const started = format.epoch(this.selection.single?.started);
    const place = (artifact: provenance.Artifact) =>
      axis === "step" ? artifact.step : axis === "time" ? artifact.time : axis === "relative" ? artifact.time - started : null;
    return this.artifacts.flatMap((artifact) => {
      const x = place(artifact);
      const words = [artifact.aliases.join(", "), artifact.size === null ? "" : format.bytes(artifact.size)].filter(Boolean).join(" · ");
      return x === null || !Number.isFinite(x) ? [] : [{ x, label: artifact.name, note: words }];
    });
  }
}
