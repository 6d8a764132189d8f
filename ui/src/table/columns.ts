// Columns of the runs table: what every run has, and any field of configuration or summary.

import * as api from "../api";
import { fill, h } from "../dom";
import * as format from "../format";
import { address } from "../route";
import { stateBadge } from "../views/badge";
import { field } from "../views/session";
import { editTags, editText } from "./edit";
import type { GridColumn } from "./grid";
import type { Item } from "./rows";
import { drawSpark } from "./spark";

export interface ColumnContext {
  project: string;
  sort: string;
  pinned: Set<string>;
  selectedColor: (id: string) => string | null;
  toggle: (run: api.Run) => void;
  filterBy: (clause: string) => void;
  changed: (run: api.Run, change: api.RunChange) => void;
}

/** What a table shows when nobody has chosen yet. */
export const DEFAULT = ["state", "last_time", "duration", "tags", "notes"];

const BASIC: Record<string, [string, number]> = {
  archived: ["archived", 90],
  attempt: ["attempt", 80],
  duration: ["took", 100],
  group: ["group", 120],
  id: ["id", 130],
  last_time: ["heard", 110],
  notes: ["notes", 220],
  points: ["points", 90],
  processes: ["ranks", 76],
  started: ["started", 170],
  state: ["state", 122],
  tags: ["tags", 180],
};

export const BASIC_KEYS = Object.keys(BASIC);

export function column(key: string, context: ColumnContext): GridColumn<Item> {
  const [label, width] = BASIC[key] ?? [shortLabel(key), 128];
  const numeric = key.startsWith("summary.") || ["attempt", "points", "processes", "duration"].includes(key);
  return {
    key,
    label,
    width,
    numeric,
    pinned: context.pinned.has(key),
    sort: direction(key, context.sort),
    draw: (cell, row) => draw(cell, row as api.Run, key, context),
  };
}

/** Selection, colour and name: always there, always at the left. */
export function nameColumns(context: ColumnContext): GridColumn<Item>[] {
  return [
    { key: "select", label: "", width: 40, pinned: true, draw: (cell, row) => drawSelect(cell, row as api.Run, context) },
    {
      key: "name",
      label: "name",
      width: innerWidth < 640 ? 150 : 230,
      pinned: true,
      sort: direction("name", context.sort),
      draw: (cell, row) => {
        const run = row as api.Run;
        fill(cell, h("a", { href: address(["p", context.project, "runs", run.id]), title: run.id, tabindex: -1 }, run.name || run.id));
      },
    },
  ];
}

function drawSelect(cell: HTMLElement, run: api.Run, context: ColumnContext): void {
  const color = context.selectedColor(run.id);
  let box = cell.firstElementChild as HTMLInputElement | null;
  if (!box) {
    box = h("input", { type: "checkbox", tabindex: -1, class: "choose" });
    fill(cell, box);
  }
  box.checked = color !== null;
  box.setAttribute("aria-label", `Select ${run.name || run.id}`);
  box.style.accentColor = color ?? "";
  box.onchange = () => context.toggle(run);
}

function draw(cell: HTMLElement, run: api.Run, key: string, context: ColumnContext): void {
  switch (key) {
    case "state":
      fill(cell, stateBadge(run));
      return;
    case "last_time": {
      const heard = format.epoch(run.last_time);
      cell.textContent = format.ago(heard);
      cell.title = format.moment(heard);
      return;
    }
    case "started":
      cell.textContent = format.moment(format.epoch(run.started));
      return;
    case "duration":
      cell.textContent = format.duration(Number(field(run, "duration")));
      return;
    case "tags":
      fill(cell, tagList(run, context));
      return;
    case "notes":
      fill(cell, editable(run.notes || "", "notes", (element) => editText(element, run.notes, (notes) => context.changed(run, { notes }))));
      return;
    case "group":
      fill(cell, editable(run.group || "", "group", (element) => editText(element, run.group, (group) => context.changed(run, { group }))));
      return;
    default:
      if (key.startsWith("spark.")) drawSpark(cell, run, key.slice("spark.".length));
      else drawValue(cell, field(run, key));
  }
}

function drawValue(cell: HTMLElement, found: unknown): void {
  const bad = found === "NaN" || found === "Infinity" || found === "-Infinity";
  const text = bad ? format.number(Number(found)) : format.value(found);
  if (cell.textContent !== text) cell.textContent = text;
  cell.title = found === undefined || found === null ? "" : String(typeof found === "object" ? text : found);
  cell.classList.toggle("bad", bad);
}

function tagList(run: api.Run, context: ColumnContext): HTMLElement {
  const tags = run.tags.map((tag) =>
    h(
      "button",
      { type: "button", class: "tag", tabindex: -1, title: `Show runs with the tag ${tag}`, on: { click: () => context.filterBy(`tags has ${JSON.stringify(tag)}`) } },
      tag,
    ),
  );
  const box = h("span", { class: "tags" }, ...tags);
  box.append(
    h(
      "button",
      {
        type: "button",
        class: "edit",
        tabindex: -1,
        "aria-label": `Edit tags of ${run.name || run.id}`,
        title: "Edit tags",
        on: { click: () => editTags(box, run.tags, (changed) => context.changed(run, { tags: changed })) },
      },
      "+",
    ),
  );
  return box;
}

function editable(text: string, what: string, edit: (element: HTMLElement) => void): HTMLElement {
  const element = h("button", { type: "button", class: `editable${text ? "" : " empty"}`, tabindex: -1, title: text || `Add ${what}`, "aria-label": `Edit ${what}: ${text}` }, text || "+");
  element.addEventListener("click", () => edit(element));
  return element;
}

export function direction(key: string, sort: string): "ascending" | "descending" | undefined {
  const keys = sort.split(",");
  if (keys.includes(key) || keys.includes(`${key}.last`)) return "ascending";
  return keys.includes(`-${key}`) || keys.includes(`-${key}.last`) ? "descending" : undefined;
}

/** config.optimizer.lr is optimizer.lr; summary.train/loss.min is train/loss min. */
export function shortLabel(key: string): string {
  if (key.startsWith("spark.")) return `${key.slice("spark.".length)} ∿`;
  return key.replace(/^(config|summary)\./, "").replace(/\.(last)$/, "").replace(/\.(min|max|mean|count|last_step)$/, " $1");
}

/** A name as the filter language takes it. */
export function quoted(key: string): string {
  return /^[\w./-]+$/.test(key) ? key : `\`${key}\``;
}
