// One line of a log: its time, rank, level and text, with the other fields of the record below when it is open.

import { type Child, button, fill, h } from "../base/dom";
import * as format from "../base/format";
import { type LogLine, levelOf, placeOf, textOf } from "../data/logs";

export type TimeStyle = "clock" | "date" | "relative" | "none";

export interface RowOptions {
  times: TimeStyle;
  /** Start of the run, in seconds since the epoch. */
  started: number;
  /** Name of the process of a line; "" if it is the only one. */
  nameOf: (line: LogLine) => string;
  /** Text to mark; "" for none. */
  search: string;
  isOpen: boolean;
  isCurrent: boolean;
  toggle: (line: LogLine) => void;
  /** Read the text of a line that was truncated. */
  readWhole: (line: LogLine) => Promise<LogLine>;
  address: (line: LogLine) => string;
}

/** Number of marks in a text. More make a row slow, and tell nothing. */
const MAX_MARKS = 100;

export function logRow(line: LogLine, options: RowOptions): HTMLElement {
  const text = textOf(line);
  const [first = "", ...rest] = text.split("\n");
  const name = options.nameOf(line);
  const label = labelOf(line);
  const lines = h("span", { class: "text" }, ...marked(options.isOpen ? text : first, options.search));
  if (!options.isOpen && rest.length) lines.append(h("span", { class: "more" }, ` +${rest.length} ${rest.length === 1 ? "line" : "lines"}`));
  const element = h(
    "div",
    {
      class: ["line", levelClass(line), options.isOpen ? "open" : "", options.isCurrent ? "current" : ""].filter(Boolean).join(" "),
      "data-id": line.id,
      on: {
        click: (event) => {
          if ((event.target as HTMLElement).closest("a, .record") || getSelection()?.toString()) return;
          options.toggle(line);
        },
      },
    },
    button(clock(line, options), () => {}, { class: "when", title: moment(line), "aria-expanded": String(options.isOpen), "aria-label": `Details of the line at ${moment(line)}` }),
    name ? h("span", { class: "who", title: name }, name) : null,
    label ? h("span", { class: "level" }, label) : null,
    lines,
    options.isOpen ? record(line, options, lines) : null,
  );
  return element;
}

/** The level of a line; "" if its stream says as much. */
export function labelOf(line: LogLine): string {
  return line.stream === null || line.severity > 16 ? levelOf(line) : "";
}

/** The time of a line with all digits that matter, in the local time zone. */
export function moment({ time }: Pick<LogLine, "time">): string {
  const date = new Date(Number(time) / 1e6);
  if (Number.isNaN(date.getTime())) return `${time} ns`;
  const two = (value: number) => String(value).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

/** The time in a position, such as the ID of a line. */
export function momentOf(position: string): string {
  return moment(placeOf({ id: position }));
}

/** The CSS class of a line: its severity or its stream. Much of what programs print to stderr is no warning. */
function levelClass({ severity, stream }: LogLine): string {
  if (severity > 16) return "bad";
  if (stream === "stderr") return "stderr";
  if (severity > 12) return "warn";
  return severity > 0 && severity < 9 ? "quiet" : "";
}

function clock(line: LogLine, { times, started }: RowOptions): string {
  if (times === "none") return "›";
  if (times === "relative") {
    const seconds = Number(line.time) / 1e9 - started;
    const [sign, size] = seconds < 0 ? ["−", -seconds] : ["+", seconds];
    const hours = Math.floor(size / 3600);
    const rest = `${String(Math.floor((size % 3600) / 60)).padStart(2, "0")}:${(size % 60).toFixed(1).padStart(4, "0")}`;
    return `${sign}${hours ? `${hours}:` : ""}${rest}`;
  }
  return times === "date" ? moment(line) : moment(line).slice(11);
}

/** A text with marks around the matches of a search, in any case. */
function marked(text: string, search: string): Child[] {
  if (!search) return [text];
  const pieces: Child[] = [];
  const [folded, needle] = [text.toLowerCase(), search.toLowerCase()];
  let from = 0;
  // Lower case may change the length of a text; its places then mean nothing.
  for (let at = folded.length === text.length ? folded.indexOf(needle) : -1; at >= 0 && pieces.length < 2 * MAX_MARKS; at = folded.indexOf(needle, from)) {
    pieces.push(text.slice(from, at), h("mark", {}, text.slice(at, at + needle.length)));
    from = at + needle.length;
  }
  pieces.push(text.slice(from));
  return pieces;
}

function record(line: LogLine, options: RowOptions, text: HTMLElement): HTMLElement {
  const scope = line.scope?.name ? `${line.scope.name}${line.scope.version ? ` ${line.scope.version}` : ""}` : "";
  const severity = [levelOf(line), line.severity_text && line.severity_text !== levelOf(line) ? `(${line.severity_text})` : ""].filter(Boolean).join(" ");
  const facts: [string, Child][] = [
    ["time", moment(line)],
    ["severity", severity],
    ["stream", line.stream ?? ""],
    ["logger", scope],
    ["process", line.process],
    ["trace", [line.trace_id, line.span_id].filter(Boolean).join(" · ")],
    ...[...format.flatten(line.attributes ?? {})].map(([name, value]): [string, Child] => [name, h("span", { class: "value" }, format.setting(value))]),
  ];
  const note = h("p", { class: "muted" });
  if (line.size !== undefined) {
    const read = button(`Show all ${line.size.toLocaleString()} characters`, () => {
      fill(note, "Loading …");
      options.readWhole(line).then(
        (whole) => {
          fill(text, ...marked(textOf(whole), options.search));
          fill(note);
        },
        (error: unknown) => fill(note, format.message(error)),
      );
    });
    note.append(read);
  }
  return h(
    "div",
    { class: "record" },
    note,
    line.json ? h("pre", {}, pretty(line.text)) : null,
    h("dl", {}, ...facts.filter(([, value]) => value !== "").flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    h("a", { href: options.address(line) }, "Link to this line"),
  );
}

function pretty(json: string): string {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}
