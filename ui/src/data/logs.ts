// Log lines of a run: requests, and what the page shows of a line.

import { json, queryString, runPath } from "./api";
import type * as schemas from "./api.types";

export type LogLine = schemas.LogLine;
export type LogUsage = schemas.LogUsage;

export interface LogFilter {
  search?: string;
  severity?: number;
  rank?: number;
  stream?: string;
}

export interface LogRequest extends LogFilter {
  project: string;
  before?: string;
  after?: string;
  since?: string;
  start?: string;
  stop?: string;
  limit?: number;
  max_text?: number;
}

const LEVELS = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"];
/** Escape sequences of terminals: colours, movements, titles and others. */
// biome-ignore lint: control characters are what this expression is about
const ESCAPES = /\u001b(?:\[[0-?]*[ -/]*[@-~]|[\]P^_X][^\u0007\u001b]*(?:\u0007|\u001b\\)?|[ -/]*[0-~])/g;
/** Number of characters that no text exceeds. */
export const WHOLE_TEXT = 4 << 20;

export async function logs(run: string, request: LogRequest, signal?: AbortSignal): Promise<schemas.Logs> {
  return json(`${runPath(run)}/logs${queryString({ ...request })}`, signal ? { signal } : {});
}

/** Read a line whose text was truncated. */
export async function wholeLine(run: string, project: string, line: LogLine): Promise<LogLine> {
  const { time, number } = placeOf(line);
  const page = await logs(run, { project, before: `${time}-${number + 1}`, limit: 1, max_text: WHOLE_TEXT });
  return page.lines.find(({ id }) => id === line.id) ?? line;
}

/** Time in nanoseconds and number of a line, by which lines are ordered. */
export function placeOf({ id }: Pick<LogLine, "id">): { time: string; number: number } {
  const hyphen = id.indexOf("-");
  return { time: id.slice(0, hyphen), number: Number(id.slice(hyphen + 1)) };
}

/** Compare two positions or IDs of lines. */
export function compare(a: string, b: string): number {
  const [first, second] = [placeOf({ id: a }), placeOf({ id: b })];
  // Times are decimal numbers without leading zeros, so longer ones are later.
  return first.time.length - second.time.length || (first.time < second.time ? -1 : first.time > second.time ? 1 : first.number - second.number);
}

/** The level of a line; "" if it has no severity. OTLP has four numbers per level. */
export function levelOf({ severity }: LogLine): string {
  return LEVELS[Math.ceil(severity / 4) - 1] ?? "";
}

/** The text of a line without escape sequences. If a program redrew the line with carriage returns, its last state. */
export function textOf({ text }: LogLine): string {
  const plain = text.includes("\u001b") ? text.replace(ESCAPES, "") : text;
  if (!plain.includes("\r")) return plain;
  return plain
    .replaceAll("\r\n", "\n")
    .split("\n")
    .map((part) => {
      const redrawn = part.replace(/\r+$/, "");
      return redrawn.slice(redrawn.lastIndexOf("\r") + 1);
    })
    .join("\n");
}
