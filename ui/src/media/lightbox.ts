// Shows images as large as the window allows, on top of the page. Images that were logged together follow each other.

import { append, button, h, setText } from "../base/dom";

const SMALL = 512;

export interface Picture {
  image: HTMLImageElement;
  caption: string;
}

/** Create a button that shows an image and opens it large. `caption` is its accessible name. */
export function picture(image: HTMLImageElement, caption: string, among: Picture[] = []): HTMLButtonElement {
  const shown = { image, caption };
  const element = button("", () => open(among.length ? among : [shown], image), { class: "picture", title: caption ? `${caption}: open large` : "Open large" });
  element.append(image);
  return element;
}

function open(pictures: Picture[], image: HTMLImageElement): void {
  const large = h("img", {});
  const caption = h("figcaption", {});
  let place = 0;
  const show = (position: number) => {
    place = (position + pictures.length) % pictures.length;
    const { image: small, caption: words } = pictures[place] as Picture;
    const { src, naturalWidth, naturalHeight } = small;
    large.src = src;
    large.alt = words || "image";
    large.className = Math.max(naturalWidth, naturalHeight) < SMALL ? "pixels" : "";
    dialog.setAttribute("aria-label", words || "Image");
    setText(caption, [pictures.length > 1 ? `${place + 1} of ${pictures.length}` : "", words, `${naturalWidth} × ${naturalHeight}`].filter(Boolean).join(" · "));
  };
  const steps = pictures.length > 1 ? h("div", { class: "steps" }, button("Previous", () => show(place - 1)), button("Next", () => show(place + 1))) : null;
  const dialog = h("dialog", { class: "lightbox" }, h("figure", {}, large, caption, steps));
  append(dialog, [button("Close", () => dialog.close(), { class: "close" })]);
  dialog.addEventListener("close", () => dialog.remove());
  // A click outside the image closes the dialog.
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") show(place + 1);
    else if (event.key === "ArrowLeft") show(place - 1);
  });
  show(
    Math.max(
      0,
      pictures.findIndex((one) => one.image === image),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
}
