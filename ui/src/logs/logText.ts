// The log as plain text, for the clipboard and for files.

import { type LogFilter, type LogLine, WHOLE_TEXT, logs, textOf } from "../data/logs";
import { labelOf, moment } from "./logRow";

const PAGE = 10_000;

/** A line with its time, the name of its process if there are several, and its level. */
export function lineText(line: LogLine, processName: string): string {
  return [moment(line), processName && `[${processName}]`, labelOf(line), textOf(line)].filter(Boolean).join(" ");
}

/** Read all lines that match a filter, as a text. `onProgress` is called with the number of lines that have been read. */
export async function wholeLog(run: string, project: string, filter: LogFilter, nameOf: (line: LogLine) => string, onProgress: (lines: number) => void): Promise<Blob> {
  const parts: Blob[] = [];
  let after: string | null = "0-0";
  let lines = 0;
  while (after !== null) {
    const page: Awaited<ReturnType<typeof logs>> = await logs(run, { project, ...filter, after, limit: PAGE, max_text: WHOLE_TEXT });
    // A blob for each page, because browsers may keep blobs on disk.
    parts.push(new Blob(page.lines.map((line) => `${lineText(line, nameOf(line))}\n`)));
    after = page.newer;
    lines += page.lines.length;
    onProgress(lines);
  }
  return new Blob(parts, { type: "text/plain" });
}
