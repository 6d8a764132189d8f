// The code and the artifacts of a single run: panels of the overview, and marks of charts.

import { fillOnChange, h } from "../base/dom";
import * as format from "../base/format";
import type { ChartMark } from "../chart/chartMarks";
import * as provenance from "../data/provenance";
import { artifactTable } from "../widgets/artifactTable";
import { codeSection } from "../widgets/codeSection";
import type { RunSelection } from "./runSelection";

export class Provenance {
  readonly artifactPanel = h("section", { class: "panel", "aria-label": "Artifacts", hidden: true });
  readonly codePanel = h("section", { class: "panel", "aria-label": "Code", hidden: true });
  private artifacts: provenance.Artifact[] = [];

  constructor(private readonly selection: RunSelection) {}

  /** Panels of what was recorded. */
  get panels(): HTMLElement[] {
    return [this.artifactPanel, this.codePanel];
  }

  /** Read and draw the panels. */
  async load(): Promise<void> {
    const [run = ""] = this.selection.ids;
    const { project } = this.selection;
    const [code] = await Promise.all([provenance.code(run, project), this.loadArtifacts()]);
    const { artifacts } = this;
    const hostOf = (id: string) => this.selection.single?.processes.find((process) => process.id === id)?.host ?? null;
    this.artifactPanel.hidden = artifacts.length === 0;
    fillOnChange(this.artifactPanel, artifacts, () => [h("h2", {}, "Artifacts"), artifactTable(artifacts, hostOf)]);
    this.codePanel.hidden = code === null;
    if (code) fillOnChange(this.codePanel, code, () => [h("h2", {}, "Code"), ...codeSection(code)]);
  }

  /** Read the artifacts only. Returns whether they have changed. */
  async loadArtifacts(): Promise<boolean> {
    const [run = ""] = this.selection.ids;
    const before = JSON.stringify(this.artifacts);
    this.artifacts = await provenance.artifacts(run, this.selection.project);
    return JSON.stringify(this.artifacts) !== before;
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
