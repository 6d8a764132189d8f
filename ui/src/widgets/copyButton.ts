// A button that copies a text, with a fallback for pages without a secure connection, where browsers offer no clipboard.

import { button, h } from "../base/dom";

const SHOWN_MS = 1500;

export function copyButton(text: string, label: string): HTMLButtonElement {
  const copy = button("Copy", async () => {
    copy.textContent = (await write(text)) ? "Copied" : "Press Ctrl+C";
    window.setTimeout(() => (copy.textContent = "Copy"), SHOWN_MS);
  }, { class: "copy", title: text, "aria-label": `Copy ${label}` });
  return copy;
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
