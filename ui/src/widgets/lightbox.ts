// Shows an image as large as the window allows, on top of the page.

import { button, fill, h } from "../base/dom";

const SMALL = 512;

/** Create a button that shows an image and opens it large. `caption` is its accessible name. */
export function picture(image: HTMLImageElement, caption: string): HTMLButtonElement {
  const element = button("", () => open(image, caption), { class: "picture", title: caption ? `${caption}: open large` : "Open large" });
  element.append(image);
  return element;
}

function open({ src, naturalWidth, naturalHeight }: HTMLImageElement, caption: string): void {
  const large = h("img", { src, alt: caption || "image", class: Math.max(naturalWidth, naturalHeight) < SMALL ? "pixels" : "" });
  const words = [caption, `${naturalWidth} × ${naturalHeight}`].filter(Boolean).join(" · ");
  const dialog = h("dialog", { class: "lightbox", "aria-label": caption || "Image" });
  dialog.addEventListener("close", () => dialog.remove());
  // A click outside the image closes the dialog.
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  fill(dialog, h("figure", {}, large, h("figcaption", {}, words)), button("Close", () => dialog.close(), { class: "close" }));
  document.body.append(dialog);
  dialog.showModal();
}
