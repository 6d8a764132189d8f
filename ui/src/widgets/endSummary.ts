// Summarizes how the processes of a run ended. The first process that failed is usually the cause.

import * as format from "../base/format";
import type { RunDetail, TelemetryEvent } from "../data/api";
import { exceptionIn } from "./failure";

const BAD_STATES = ["crashed", "failed", "preempted"];
const MAX_REASON = 300;
// What an agent reports of a process that said nothing. The description of the state says the same.
const NO_REASON = "the process ended without finishing the run";

interface End {
  time: number;
  state: string;
  message: string;
  source: string;
}

/** Summarize run-end events in a sentence; "" if all processes ended well or none gave a reason. */
export function endSummary({ processes, attempt }: RunDetail, events: TelemetryEvent[]): string {
  const latest = processes.filter((process) => process.attempt === attempt);
  const members = new Map((latest.length ? latest : processes).map((process) => [process.id, process]));
  const ends: End[] = events
    .filter(({ process }) => members.has(process))
    .map(({ time, process, body }) => {
      const { state, message, traceback } = (body ?? {}) as Record<string, unknown>;
      const { rank, host } = members.get(process) ?? { rank: null, host: null };
      const name = rank === null ? process.slice(0, 8) : `rank ${rank}`;
      return { time: format.epoch(time), state: String(state ?? ""), message: (typeof traceback === "string" && exceptionIn(traceback.trimEnd().split("\n"))) || String(message ?? ""), source: host ? `${name} on ${host}` : name };
    })
    .filter(({ state }) => BAD_STATES.includes(state))
    .sort((a, b) => a.time - b.time);
  const [first, ...others] = ends;
  if (!first) return "";
  const reason = first.message === NO_REASON ? "" : first.message.slice(0, MAX_REASON).replace(/[\s.:]+$/, "");
  if (members.size === 1 || (others.length === 0 && ranks(members.values()) < 2)) return reason && `${reason}.`;
  const after = BAD_STATES.map((state) => [others.filter((end) => end.state === state).length, state] as const)
    .filter(([count]) => count > 0)
    .map(([count, state]) => `${count} ${state}`);
  const sentence = `First: ${first.source} ${first.state === "preempted" ? "was preempted" : first.state}${reason && ` (${reason})`}, ${format.moment(first.time)}`;
  return after.length ? `${sentence}; later: ${after.join(", ")}.` : `${sentence}.`;
}

function ranks(processes: Iterable<{ rank: number | null }>): number {
  return [...processes].filter(({ rank }) => rank !== null).length;
}
