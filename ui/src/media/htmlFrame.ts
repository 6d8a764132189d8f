// Shows a logged HTML document. The server's frame has its own content policy, without scripts of the document and without network
// access, and passes the document on to a sandbox inside it.

import { h } from "../base/dom";

const FRAME = "/static/html-frame";

export function htmlFrame(document: string, title: string): HTMLIFrameElement {
  const frame = h("iframe", { src: FRAME, title, sandbox: "allow-scripts", class: "html", loading: "lazy" });
  // The sandbox has an opaque origin, which only "*" names. The frame's document is the server's.
  frame.addEventListener("load", () => frame.contentWindow?.postMessage(document, "*"));
  return frame;
}
