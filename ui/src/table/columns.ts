// Columns of the runs table: basic fields, and any field of the configuration or the summary.

import { button, fill, h, setText } from "../base/dom";
import * as format from "../base/format";
import { address } from "../base/route";
import * as api from "../data/api";
import { fieldValue } from "../data/fields";
import { fillBadge } from "../widgets/badge";
import type { GridColumn } from "./grid";
import { editTags, editText } from "./inlineEdit";
import type { Item } from "./rows";
import { drawSparkline } from "./sparkline";

export interface ColumnContext {
  project: string;
  sort: string;
  pinned: Set<string>;
  /** Keys of columns that hold numbers. */
  numbers: Set<string>;
  selectedColor: (id: string) => string | null;
  toggle: (run: api.Run) => void;
  filterBy: (clause: string) => void;
  changed: (run: api.Run, change: api.RunChange) => void;
}

const BASIC_COLUMNS: Record<string, [string, number]> = {
  archived: ["archived", 90],
  attempt: ["attempt", 80],
  duration: ["duration", 100],
  group: ["group", 120],
  id: ["id", 130],
  job_type: ["job type", 110],
  lag: ["lag", 92],
  last_time: ["last update", 116],
  lost: ["lost", 80],
  notes: ["notes", 220],
  points: ["points", 90],
  processes: ["processes", 104],
  started: ["started", 170],
  state: ["state", 122],
  tags: ["tags", 180],
};

export const BASIC_KEYS = Object.keys(BASIC_COLUMNS);

export function column(key: string, context: ColumnContext): GridColumn<Item> {
  const numeric = key.startsWith("summary.") || context.numbers.has(key);
  const [label, width] = BASIC_COLUMNS[key] ?? [shortLabel(key), key.startsWith("spark.") ? 130 : widthOf(shortLabel(key), numeric)];
  return {
    key,
    label,
    width,
    numeric,
    pinned: context.pinned.has(key),
    sort: direction(key, context.sort),
    create: (cell) => forRuns(runCell(cell, key, context)),
  };
}

/** Width in pixels for the label with its arrow, and for most values. */
function widthOf(label: string, numeric: boolean): number {
  return Math.min(Math.max(numeric ? 92 : 120, 7.4 * label.length + 36), 240);
}

/** The columns that are always pinned: selection with colour, and name. */
export function nameColumns(context: ColumnContext): GridColumn<Item>[] {
  return [
    { key: "select", label: "", width: 40, pinned: true, create: (cell) => forRuns(selectCell(cell, context)) },
    {
      key: "name",
      label: "name",
      width: innerWidth < 640 ? 150 : 220,
      pinned: true,
      sort: direction("name", context.sort),
      create: (cell) => {
        const link = h("a", { tabindex: -1 });
        cell.append(link);
        const setTitle = hoverTitle(link);
        return forRuns((run) => {
          link.href = address(["p", context.project, "runs", run.id]);
          setTitle(run.id);
          setText(link, run.name || run.id);
        });
      },
    },
  ];
}

type Show = (run: api.Run) => void;

/** Adapt a cell of runs to rows; group headings have no cells. */
function forRuns(show: Show): (row: Item) => void {
  return (row) => show(row as api.Run);
}

function selectCell(cell: HTMLElement, context: ColumnContext): Show {
  let current: api.Run | null = null;
  const box = h("input", { type: "checkbox", tabindex: -1, class: "choose", on: { change: () => current && context.toggle(current) } });
  cell.append(box);
  return (run) => {
    current = run;
    const color = context.selectedColor(run.id);
    box.checked = color !== null;
    box.setAttribute("aria-label", `Select ${run.name || run.id}`);
    box.style.accentColor = color ?? "";
  };
}

function runCell(cell: HTMLElement, key: string, context: ColumnContext): Show {
  switch (key) {
    case "state": {
      const badge = h("span", {});
      cell.append(badge);
      return (run) => fillBadge(badge, run);
    }
    case "last_time": {
      const setTitle = hoverTitle(cell);
      return (run) => {
        const lastUpdate = format.epoch(run.last_time);
        setText(cell, format.ago(lastUpdate));
        setTitle(format.moment(lastUpdate));
      };
    }
    case "started":
      return (run) => setText(cell, format.moment(format.epoch(run.started)));
    case "lag":
      return (run) => setText(cell, run.lag === null ? "–" : format.duration(Math.max(0, run.lag)));
    case "duration":
      return (run) => setText(cell, format.duration(Number(fieldValue(run, "duration"))));
    case "tags":
      return tagsCell(cell, context);
    case "notes":
    case "group":
    case "job_type":
      return textCell(cell, key, context);
    default: {
      if (key.startsWith("spark.")) {
        const metric = key.slice("spark.".length);
        return (run) => drawSparkline(cell, run, metric);
      }
      const setTitle = hoverTitle(cell);
      return (run) => setTitle(showValue(cell, fieldValue(run, key)));
    }
  }
}

/** Show a title when the pointer enters the element. The attribute is set only then, because each change of it restyles the element. */
function hoverTitle(element: HTMLElement): (text: string) => void {
  let title = "";
  element.addEventListener("pointerenter", () => (element.title = title));
  return (text) => {
    title = text;
  };
}

/** Show a value in a cell. Returns the full text. */
function showValue(cell: HTMLElement, value: unknown): string {
  const bad = value === "NaN" || value === "Infinity" || value === "-Infinity";
  const text = bad ? format.number(Number(value)) : format.value(value);
  setText(cell, text);
  cell.classList.toggle("bad", bad);
  return value === undefined || value === null ? "" : String(typeof value === "object" ? text : value);
}

function tagsCell(cell: HTMLElement, context: ColumnContext): Show {
  let current: api.Run | null = null;
  let tags = "";
  const onClick = () => {
    const run = current;
    if (run) editTags(box, run.tags, (changed) => context.changed(run, { tags: changed }));
  };
  const edit = button("+", onClick, { class: "edit", tabindex: -1, title: "Edit tags" });
  const box = h("span", { class: "tags" }, edit);
  cell.append(box);
  return (run) => {
    current = run;
    edit.setAttribute("aria-label", `Edit tags of ${run.name || run.id}`);
    const text = run.tags.join("\n");
    if (text === tags) return;
    tags = text;
    const buttons = run.tags.map((tag) =>
      button(tag, () => context.filterBy(`tags has ${JSON.stringify(tag)}`), { class: "tag", tabindex: -1, title: `Show runs with the tag ${tag}` }),
    );
    fill(box, ...buttons, edit);
  };
}

const TEXTS = { notes: "notes", group: "a group", job_type: "a job type" };

function textCell(cell: HTMLElement, key: keyof typeof TEXTS, context: ColumnContext): Show {
  let current: api.Run | null = null;
  const onClick = () => {
    const run = current;
    if (run) editText(element, run[key] || "", (text) => context.changed(run, { [key]: text }));
  };
  const element = button("", onClick, { class: "editable", tabindex: -1 });
  cell.append(element);
  return (run) => {
    current = run;
    const text = run[key] || "";
    setText(element, text || "+");
    element.title = text || `Add ${TEXTS[key]}`;
    element.setAttribute("aria-label", `Edit ${BASIC_COLUMNS[key]?.[0]}: ${text}`);
    element.classList.toggle("empty", text === "");
  };
}

export function direction(key: string, sort: string): "ascending" | "descending" | undefined {
  const keys = [sort, ...sort.split(",")]; // a quoted name may contain commas
  const names = [key, `${key}.value`].map(quoteField);
  if (names.some((name) => keys.includes(name))) return "ascending";
  return names.some((name) => keys.includes(`-${name}`)) ? "descending" : undefined;
}

/** Short label of a column: config.optimizer.lr becomes optimizer.lr, summary.train/loss.min becomes train/loss min. */
export function shortLabel(key: string): string {
  if (key.startsWith("spark.")) return `${key.slice("spark.".length)} ∿`;
  return key.replace(/^(config|summary)\./, "").replace(/\.(value)$/, "").replace(/\.(last|min|max|mean|count|last_step)$/, " $1");
}

/** Quote a field name for the filter language if necessary. */
export function quoteField(key: string): string {
  return /^[\w./-]+$/.test(key) ? key : `\`${key.replaceAll("`", "``")}\``;
}
