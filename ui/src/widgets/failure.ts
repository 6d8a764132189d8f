// The end of a run that failed: its exception, the traceback, and the last lines of its log.

import { type Child, button, fill, h } from "../base/dom";
import * as format from "../base/format";
import type { RunDetail, TelemetryEvent } from "../data/api";
import { type LogLine, textOf } from "../data/logs";
import { copyButton } from "./copyButton";

const SHOWN = 15;
const LAST_LINES = 12;

export interface Failure {
  /** First line of the exception, such as "RuntimeError: CUDA out of memory". */
  exception: string;
  traceback: string[];
  event: TelemetryEvent;
}

/** The failure of the latest attempt; of several processes, the one that failed first. Null if there is no traceback. */
export function failureOf({ processes, attempt }: RunDetail, events: TelemetryEvent[]): Failure | null {
  const latest = new Set(processes.filter((process) => process.attempt === attempt).map(({ id }) => id));
  const failures = events.flatMap((event): Failure[] => {
    const { traceback } = (event.body ?? {}) as Record<string, unknown>;
    if (event.name !== "tensormeter.run.end" || !latest.has(event.process) || typeof traceback !== "string" || !traceback.trim()) return [];
    const lines = traceback.trimEnd().split("\n");
    return [{ exception: exceptionIn(lines), traceback: lines, event }];
  });
  return failures.sort((a, b) => Number(BigInt(a.event.time) - BigInt(b.event.time)))[0] ?? null;
}

/** The first line of the exception in the lines of a traceback: the one after the last frame. Messages may have several lines. */
export function exceptionIn(lines: string[]): string {
  const at = lines.findLastIndex((line, index) => /^\S/.test(line) && /^\s/.test(lines[index - 1] ?? " "));
  const first = lines[at] ?? lines.at(-1) ?? "";
  const following = lines[at + 1]?.trim();
  return first.endsWith(":") && following ? `${first} ${following}` : first;
}

export function failureContent(failure: Failure | null, source: string, lastLines: LogLine[], logAddress: string): Child[] {
  const parts: Child[] = [];
  if (failure) {
    parts.push(h("h2", { class: "exception" }, failure.exception), h("p", { class: "source" }, [source, format.moment(format.epoch(failure.event.time))].filter(Boolean).join(" · ")), tracebackBox(failure.traceback));
  }
  const printed = beforeTraceback(lastLines.map((line) => textOf(line)), failure?.traceback ?? []).slice(-LAST_LINES);
  if (printed.length) {
    const text = printed.join("\n");
    parts.push(h("h3", {}, "Last lines of the log"), h("pre", { class: "last-lines", tabindex: 0, "aria-label": "Last lines of the log" }, text), h("p", {}, h("a", { href: logAddress }, "Open the log")));
  }
  return parts;
}

/** Lines without the traceback at their end, which the program has printed, too. */
function beforeTraceback(lines: string[], traceback: string[]): string[] {
  const known = new Set(traceback);
  const last = lines.findLastIndex((line) => !known.has(line));
  return lines.slice(0, last + 1);
}

function tracebackBox(lines: string[]): HTMLElement {
  const box = h("div", {});
  const text = h("pre", { tabindex: 0, "aria-label": "Traceback" }, lines.slice(-SHOWN).join("\n"));
  const copy = copyButton("Copy traceback", () => lines.join("\n"));
  const hidden = lines.length - SHOWN;
  const more = button(`Show ${format.counted(hidden, "earlier line")}`, () => {
    fill(text, lines.join("\n"));
    more.remove();
  });
  box.append(text, h("div", { class: "row-of-buttons" }, hidden > 0 ? more : null, copy));
  return box;
}
