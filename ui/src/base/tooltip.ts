// Tooltip at the pointer.

import { type Child, fill, h } from "./dom";

let box: HTMLElement | null = null;

/** A place of the pointer, in pixels of the window. */
export interface Place {
  left: number;
  top: number;
}

export function show(place: Place, ...content: Child[]): void {
  box ??= h("div", { class: "tooltip", role: "status", "aria-live": "off" });
  // An open dialog covers everything outside it.
  const parent = document.querySelector("dialog[open]") ?? document.body;
  if (box.parentElement !== parent) parent.append(box);
  fill(box, ...content);
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  const left = place.left + 18 + width > innerWidth ? place.left - width - 18 : place.left + 18;
  box.style.left = `${Math.max(4, left)}px`;
  box.style.top = `${Math.max(4, Math.min(place.top + 12, innerHeight - height - 4))}px`;
}

export function hide(): void {
  if (box) box.hidden = true;
}
