// A button that copies a text, with a fallback for pages without a secure connection, where browsers offer no clipboard.

import { type Props, button, h } from "../base/dom";

const SHOWN_MS = 1500;

export function copyButton(words: string, text: () => string, props: Props = {}): HTMLButtonElement {
  const copy = button(words, async () => {
    copy.textContent = (await write(text())) ? "Copied" : "Not permitted";
    window.setTimeout(() => (copy.textContent = words), SHOWN_MS);
  }, props);
  return copy;
}

/** A small button with "Copy" next to the text that it copies. */
export function copyMark(text: string, label: string): HTMLButtonElement {
  return copyButton("Copy", () => text, { class: "copy", title: text, "aria-label": `Copy ${label}` });
}

async function write(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = h("textarea", { class: "offscreen", "aria-hidden": "true" });
    field.value = text;
    document.body.append(field);
    field.select();
    const isCopied = document.execCommand("copy");
    field.remove();
    return isCopied;
  }
}
