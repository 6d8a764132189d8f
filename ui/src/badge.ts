// The state of a run, as a word with a colour, never as a colour alone.

import type { Run, State } from "./api";
import { h } from "./dom";
import * as format from "./format";

export function stateBadge(run: Pick<Run, "state" | "last_time">): HTMLElement {
  return fillBadge(h("span", {}), run);
}

/** Make an element the badge of a run. */
export function fillBadge(badge: HTMLElement, run: Pick<Run, "state" | "last_time">): HTMLElement {
  const kind = `badge ${run.state}`;
  if (badge.className !== kind) {
    badge.className = kind;
    badge.textContent = run.state;
  }
  badge.title = `last heard ${format.ago(format.epoch(run.last_time))}`;
  return badge;
}

/** What the state means, for somebody who has just been woken. */
export function meaning(state: State): string {
  return {
    running: "Points are arriving.",
    finished: "It ended as it should.",
    failed: "The script ended with an error.",
    crashed: "The process is gone without saying goodbye.",
    preempted: "It was told to stop by the scheduler, and may go on as a further attempt.",
    stalled: "It has not ended, but nothing has arrived for longer than its steps take.",
  }[state];
}
