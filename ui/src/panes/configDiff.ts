// Configurations of several runs in columns: settings that differ, and the others on demand.

import { fill, h } from "../base/dom";
import * as format from "../base/format";
import * as route from "../base/route";
import type { RunSelection } from "../selection/runSelection";
import type { Pane } from "./pane";

export class ConfigDiffPane implements Pane {
  readonly element = h("div", { class: "pane" });

  constructor(private readonly selection: RunSelection) {}

  apply(params: URLSearchParams): void {
    const { runs } = this.selection;
    const all = params.has("equal");
    const configs = runs.map((run) => format.flatten(run.config));
    const keys = [...new Set(configs.flatMap((config) => [...config.keys()]))].sort();
    const rows = keys.map((key) => {
      const values = configs.map((config) => (config.has(key) ? JSON.stringify(config.get(key)) : null));
      return { key, values, differs: new Set(values).size > 1 };
    });
    const visibleRows = rows.filter(({ differs }) => all || differs);
    const box = h("input", { type: "checkbox", checked: all, on: { change: () => route.change({ equal: all ? null : "1" }) } });
    fill(
      this.element,
      h(
        "div",
        { class: "content" },
        h("div", { class: "controls" }, h("label", { class: "check" }, box, "show equal settings"), h("span", { class: "muted" }, `${rows.filter(({ differs }) => differs).length} of ${rows.length} settings differ`)),
        visibleRows.length === 0
          ? h("div", { class: "state" }, h("h2", {}, keys.length ? "All settings are equal" : "No configuration"), keys.length ? null : h("p", {}, "Pass one to tensormeter.init(config={...})."))
          : h(
              "div",
              { class: "scroll", tabindex: 0, role: "region", "aria-label": "Configurations" },
              h(
                "table",
                { class: "plain difference" },
                h(
                  "thead",
                  {},
                  h("tr", {}, h("th", { scope: "col" }, "setting"), ...runs.map((run) => h("th", { scope: "col" }, h("a", { href: route.address(["p", run.project, "runs", run.id]) }, run.name || run.id)))),
                ),
                h(
                  "tbody",
                  {},
                  ...visibleRows.map(({ key, values, differs }) =>
                    h("tr", { class: differs ? "differs" : "" }, h("th", { scope: "row" }, key), ...values.map((value) => h("td", { class: value === null ? "muted" : value === values[0] ? "" : "other" }, value ?? "–"))),
                  ),
                ),
              ),
            ),
      ),
    );
  }

  close(): void {}
}
