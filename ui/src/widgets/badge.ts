// The state of a run as a word with a colour.

import { h } from "../base/dom";
import * as format from "../base/format";
import type { Run, RunDetail, State } from "../data/api";

export function stateBadge(run: Pick<Run, "state" | "last_time">): HTMLElement {
  return fillBadge(h("span", {}), run);
}

/** Turn an element into the badge of a run. */
export function fillBadge(badge: HTMLElement, run: Pick<Run, "state" | "last_time">): HTMLElement {
  const className = `badge ${run.state}`;
  if (badge.className !== className) {
    badge.className = className;
    badge.textContent = run.state;
  }
  badge.title = `last update ${format.ago(format.epoch(run.last_time))}`;
  return badge;
}

/** Whether a run comes from software that reports neither starts nor ends, such as services with another OpenTelemetry SDK. */
export function isForeign({ processes }: Pick<RunDetail, "processes">): boolean {
  return processes.every(({ state }) => state === null);
}

/** Describe a state in a sentence. For foreign runs see `isForeign`. */
export function describeState(state: State, foreign = false): string {
  if (state === "stalled" && foreign) return "No data has arrived for several minutes. Services that do not use tensormeter never report their end.";
  return {
    running: "Data is arriving.",
    finished: "Finished.",
    failed: "The script ended with an error.",
    crashed: "The process ended without finishing the run (crash or kill).",
    preempted: "The scheduler stopped the run. It may continue as a new attempt.",
    stalled: "The run has not ended, but no data has arrived for several minutes, or for longer than a step usually takes.",
  }[state];
}
