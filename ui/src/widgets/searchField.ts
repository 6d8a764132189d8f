// A field that searches what a pane shows. The search is in the address.

import { h } from "../base/dom";
import * as route from "../base/route";

export function searchField(what: string): HTMLInputElement {
  const words = `Search ${what} (regular expression)`;
  const field = h("input", {
    type: "search",
    "data-search": true,
    placeholder: words,
    "aria-label": words,
    class: "search",
    on: { input: () => route.change({ q: field.value }) },
  });
  return field;
}
