// The state of a run, as a word with a colour, never as a colour alone.

import { h } from "../base/dom";
import * as format from "../base/format";
import type { Run, RunDetail, State } from "../data/api";

export function stateBadge(run: Pick<Run, "state" | "last_time">): HTMLElement {
  return fillBadge(h("span", {}), run);
}

/** Make an element the badge of a run. */
export function fillBadge(badge: HTMLElement, run: Pick<Run, "state" | "last_time">): HTMLElement {
  const className = `badge ${run.state}`;
  if (badge.className !== className) {
    badge.className = className;
    badge.textContent = run.state;
  }
  badge.title = `last heard ${format.ago(format.epoch(run.last_time))}`;
  return badge;
}

/** Whether a run is of a sender that reports neither starts nor ends, as other software than tensormeter. */
export function isForeign({ processes }: Pick<RunDetail, "processes">): boolean {
  return processes.every(({ state }) => state === null);
}

/** What the state means, for somebody who has just been woken; of a foreign run, see `isForeign`. */
export function describeState(state: State, foreign = false): string {
  if (state === "stalled" && foreign) return "Nothing has arrived for some minutes. A service that does not record with tensormeter never says that it ends.";
  return {
    running: "Points are arriving.",
    finished: "It ended as it should.",
    failed: "The script ended with an error.",
    crashed: "The process is gone without saying goodbye.",
    preempted: "It was told to stop by the scheduler, and may go on as a further attempt.",
    stalled: "It has not ended, but nothing has arrived for some minutes, or for longer than its steps take.",
  }[state];
}
