// Banners: what somebody should know before they look at anything else.

import { fill, h } from "../base/dom";
import * as format from "../base/format";
import { address } from "../base/route";
import * as api from "../data/api";

export interface Banner {
  kind: "bad" | "warn";
  title: string;
  text: string;
  /** Where to look, as pairs of label and address. */
  links?: [string, string][];
}

/** Seconds after which points are late. */
const LATE = 60;
/** Runs that a banner names. */
const NAMED = 5;

/** Filters for runs that a banner is about. */
export const LOST = "lost > 0";
export const LATE_NOW = `state = "running" and lag > ${LATE}`;

export function isLate({ state, lag }: Pick<api.Run, "state" | "lag">): boolean {
  return state === "running" && lag !== null && lag > LATE;
}

export function drawBanners(element: HTMLElement, banners: Banner[]): void {
  const shown = JSON.stringify(banners);
  if (element.dataset.shown === shown) return;
  element.dataset.shown = shown;
  fill(
    element,
    ...banners.map(({ kind, title, text, links }) => {
      const banner = h("p", { class: `banner ${kind}`, role: "alert" }, h("strong", {}, title), " ", text);
      for (const [label, href] of links ?? []) banner.append(" ", h("a", { href }, label));
      return banner;
    }),
  );
}

/** Which of several runs lost points, and of which they come late; the numbers where these are not all of them. */
export function ofRuns(project: string, lost: api.Run[], late: api.Run[], numbers = { lost: lost.length, late: late.length }): Banner[] {
  const banners: Banner[] = [];
  if (lost.length) {
    const named = links(project, lost, numbers.lost, LOST, (run) => format.count(run.lost));
    banners.push({ kind: "bad", title: "Data was lost", text: `by ${runs(numbers.lost)}:`, links: named });
  }
  if (late.length) {
    const named = links(project, late, numbers.late, LATE_NOW, (run) => format.duration(run.lag ?? 0));
    banners.push({ kind: "warn", title: "Late", text: `are the newest points of ${runs(numbers.late)}:`, links: named });
  }
  return banners;
}

function runs(n: number): string {
  return n === 1 ? "a run" : `${n} runs`;
}

function links(project: string, found: api.Run[], n: number, filter: string, amount: (run: api.Run) => string): [string, string][] {
  const named = found.slice(0, NAMED).map((run): [string, string] => [`${run.name || run.id} (${amount(run)})`, address(["p", project, "runs", run.id])]);
  return n > named.length ? [...named, [`and ${n - named.length} more`, address(["p", project], { filter })]] : named;
}
