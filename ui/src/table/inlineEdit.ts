// Tags and notes, edited where they stand. Enter keeps, Escape leaves it as it was.

import { h } from "../base/dom";

export function editText(element: HTMLElement, text: string, onDone: (text: string) => void): void {
  const input = h("input", { class: "inline", value: text, "aria-label": "Text" });
  begin(element, input, () => {
    if (input.value !== text) onDone(input.value);
  });
}

export function editTags(element: HTMLElement, tags: string[], onDone: (tags: string[]) => void): void {
  const input = h("input", { class: "inline", value: tags.join(", "), "aria-label": "Tags, separated by commas", placeholder: "tags, separated by commas" });
  begin(element, input, () => {
    const given = [...new Set(input.value.split(",").map((tag) => tag.trim()).filter(Boolean))];
    if (given.join("\n") !== tags.join("\n")) onDone(given);
  });
}

function begin(element: HTMLElement, input: HTMLInputElement, keep: () => void): void {
  element.replaceWith(input);
  input.focus();
  input.select();
  let over = false;
  const end = (kept: boolean) => {
    if (over) return;
    over = true;
    input.replaceWith(element);
    if (kept) keep();
    element.closest<HTMLElement>("[role=grid]")?.focus();
  };
  input.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter") end(true);
    if (event.key === "Escape") end(false);
  });
  input.addEventListener("blur", () => end(true));
}
