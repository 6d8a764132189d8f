// What a person can change about a run: tags, notes, whether it is archived, whether it is there at all.

import { button, fill, h } from "../base/dom";
import { go } from "../base/route";
import * as api from "../data/api";
import type { RunSelection } from "./runSelection";

export class RunEditor {
  readonly element: HTMLElement;
  private readonly tags = h("input", { "aria-label": "Tags, separated by commas", placeholder: "tags, separated by commas", on: { change: () => this.saveTags() } });
  private readonly notes = h("textarea", { rows: 3, "aria-label": "Notes", placeholder: "Notes", on: { change: () => void this.save({ notes: this.notes.value }) } });
  private readonly archive = button("Archive", () => void this.save({ archived: !this.selection.single?.archived }));
  private readonly problem = h("p", { class: "problem", role: "alert" });
  private readonly dialog = h("dialog", { "aria-label": "Delete the run" });

  constructor(
    private readonly selection: RunSelection,
    private readonly onChange: () => void,
  ) {
    const remove = button("Delete …", () => this.confirmDelete(), { class: "danger" });
    this.element = h(
      "div",
      { class: "editor" },
      h("label", {}, "Tags ", this.tags),
      h("label", {}, "Notes ", this.notes),
      this.problem,
      h("p", { class: "row-of-buttons" }, this.archive, remove),
      this.dialog,
    );
  }

  /** Show what the run has now, but not over what somebody is writing. */
  update(): void {
    const run = this.selection.single;
    if (!run) return;
    if (document.activeElement !== this.tags) this.tags.value = run.tags.join(", ");
    if (document.activeElement !== this.notes) this.notes.value = run.notes;
    const label = run.archived ? "Bring back from the archive" : "Archive";
    if (this.archive.textContent !== label) this.archive.textContent = label;
  }

  private saveTags(): void {
    void this.save({ tags: [...new Set(this.tags.value.split(",").map((tag) => tag.trim()).filter(Boolean))] });
  }

  private async save(change: api.RunChange): Promise<void> {
    const run = this.selection.single;
    if (!run) return;
    try {
      await api.changeRun(run.id, run.project, change);
      this.problem.textContent = "";
      // It may have been read again meanwhile.
      Object.assign(this.selection.single ?? run, change);
    } catch (error) {
      this.problem.textContent = `Not saved: ${error instanceof Error ? error.message : String(error)}`;
    }
    this.update();
    this.onChange();
  }

  private confirmDelete(): void {
    const run = this.selection.single;
    if (!run) return;
    const problem = h("p", { class: "problem", role: "alert" });
    const remove = async () => {
      try {
        await api.deleteRun(run.id, run.project);
        this.dialog.close();
        go(["p", run.project]);
      } catch (error) {
        problem.textContent = error instanceof Error ? error.message : String(error);
      }
    };
    fill(
      this.dialog,
      h("h2", {}, `Delete ${run.name || run.id}?`),
      h("p", {}, "All its points are removed from the server. There is no way back."),
      h("p", { class: "row-of-buttons" }, button("Delete", () => void remove(), { class: "danger" }), button("Keep it", () => this.dialog.close())),
      problem,
    );
    this.dialog.showModal();
  }
}
