// Editor of a run: tags, notes, archive, delete.

import { button, fill, h, setText, setValue } from "../base/dom";
import * as format from "../base/format";
import { go } from "../base/route";
import * as api from "../data/api";
import type { RunSelection } from "./runSelection";

export class RunEditor {
  readonly element: HTMLElement;
  private readonly tags = h("input", { "aria-label": "Tags, separated by commas", placeholder: "tags, separated by commas", on: { change: () => this.saveTags() } });
  private readonly notes = h("textarea", { rows: 3, "aria-label": "Notes", placeholder: "Notes", on: { change: () => void this.save({ notes: this.notes.value }) } });
  private readonly archive = button("Archive", () => void this.save({ archived: !this.selection.single?.archived }));
  private readonly problem = h("p", { class: "problem", role: "alert" });
  private readonly dialog = h("dialog", { "aria-label": "Delete run" });

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

  /** Show the current values, except in the field that has the focus. */
  update(): void {
    const run = this.selection.single;
    if (!run) return;
    setValue(this.tags, run.tags.join(", "));
    setValue(this.notes, run.notes);
    setText(this.archive, run.archived ? "Restore from archive" : "Archive");
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
      // The run may have been reloaded in the meantime.
      Object.assign(this.selection.single ?? run, change);
    } catch (error) {
      this.problem.textContent = `Not saved: ${format.message(error)}`;
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
        problem.textContent = format.message(error);
      }
    };
    fill(
      this.dialog,
      h("h2", {}, `Delete ${run.name || run.id}?`),
      h("p", {}, "This removes all of its data from the server and cannot be undone."),
      h("p", { class: "row-of-buttons" }, button("Delete", () => void remove(), { class: "danger" }), button("Cancel", () => this.dialog.close())),
      problem,
    );
    this.dialog.showModal();
  }
}
