// Edits tags and notes in place. Enter saves, Escape cancels.

import { h } from "../base/dom";

export function editText(element: HTMLElement, text: string, onDone: (text: string) => void): void {
  const input = h("input", { class: "inline", value: text, "aria-label": "Text" });
  startEditing(element, input, () => {
    if (input.value !== text) onDone(input.value);
  });
}

export function editTags(element: HTMLElement, tags: string[], onDone: (tags: string[]) => void): void {
  const input = h("input", { class: "inline", value: tags.join(", "), "aria-label": "Tags, separated by commas", placeholder: "tags, separated by commas" });
  startEditing(element, input, () => {
    const edited = [...new Set(input.value.split(",").map((tag) => tag.trim()).filter(Boolean))];
    if (edited.join("\n") !== tags.join("\n")) onDone(edited);
  });
}

function startEditing(element: HTMLElement, input: HTMLInputElement, onSave: () => void): void {
  element.replaceWith(input);
  input.focus();
  input.select();
  let done = false;
  const end = (save: boolean) => {
    if (done) return;
    done = true;
    input.replaceWith(element);
    if (save) onSave();
    element.closest<HTMLElement>("[role=grid]")?.focus();
  };
  input.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter") end(true);
    if (event.key === "Escape") end(false);
  });
  input.addEventListener("blur", () => end(true));
}
