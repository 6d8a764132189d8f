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
const LATE_SECONDS = 60;
/** Runs that a banner names. */
const MAX_LINKS = 5;

/** Filters for runs that a banner is about. */
export const LOST_FILTER = "lost > 0";
export const LATE_FILTER = `state = "running" and lag > ${LATE_SECONDS}`;

export function isLate({ state, lag }: Pick<api.Run, "state" | "lag">): boolean {
  return state === "running" && lag !== null && lag > LATE_SECONDS;
}

export function drawBanners(element: HTMLElement, banners: Banner[]): void {
  const fingerprint = JSON.stringify(banners);
  if (element.dataset.fingerprint === fingerprint) return;
  element.dataset.fingerprint = fingerprint;
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
export function runBanners(project: string, lost: api.Run[], late: api.Run[], totals = { lost: lost.length, late: late.length }): Banner[] {
  const banners: Banner[] = [];
  if (lost.length) {
    const runLinks = linksTo(project, lost, totals.lost, LOST_FILTER, (run) => format.count(run.lost));
    banners.push({ kind: "bad", title: "Data was lost", text: `by ${countRuns(totals.lost)}:`, links: runLinks });
  }
  if (late.length) {
    const runLinks = linksTo(project, late, totals.late, LATE_FILTER, (run) => format.duration(run.lag ?? 0));
    banners.push({ kind: "warn", title: "Late", text: `are the newest points of ${countRuns(totals.late)}:`, links: runLinks });
  }
  return banners;
}

function countRuns(n: number): string {
  return n === 1 ? "a run" : `${n} runs`;
}

function linksTo(project: string, affected: api.Run[], n: number, filter: string, amount: (run: api.Run) => string): [string, string][] {
  const named = affected.slice(0, MAX_LINKS).map((run): [string, string] => [`${run.name || run.id} (${amount(run)})`, address(["p", project, "runs", run.id])]);
  return n > named.length ? [...named, [`and ${n - named.length} more`, address(["p", project], { filter })]] : named;
}
