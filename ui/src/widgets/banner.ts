// Banners for lost data, late data and other problems.

import { fillOnChange, h } from "../base/dom";
import * as format from "../base/format";
import { address, current } from "../base/route";
import * as api from "../data/api";

export interface Banner {
  kind: "bad" | "warn" | "note";
  title: string;
  text: string;
  /** Links for more detail, as pairs of label and address. */
  links?: [string, string][];
}

/** Seconds of delay after which points count as late. */
const LATE_SECONDS = 60;
/** Number of runs that a banner links to. */
const MAX_LINKS = 5;

/** Filters that select the runs with lost or late points. */
export const LOST_FILTER = "lost > 0";
export const LATE_FILTER = `state = "running" and lag > ${LATE_SECONDS}`;

export function isLate({ state, lag }: Pick<api.Run, "state" | "lag">): boolean {
  return state === "running" && lag !== null && lag > LATE_SECONDS;
}

export function drawBanners(element: HTMLElement, banners: Banner[]): void {
  const draw = ({ kind, title, text, links = [] }: Banner) =>
    h("p", { class: `banner ${kind}`, role: kind === "note" ? "status" : "alert" }, h("strong", {}, title), " ", text, ...links.flatMap(([label, href]) => [" ", h("a", { href }, label)]));
  fillOnChange(element, banners, () => banners.map(draw));
}

/** Create a banner for attempts with points that later attempts repeat, which charts hide unless the address says otherwise. */
export function attemptBanners(hidden: api.HiddenPart[]): Banner[] {
  if (hidden.length === 0) return [];
  const { path, params } = current();
  const attempts = [...new Set(hidden.map(({ attempt }) => attempt))].sort((a, b) => a - b);
  const metrics = new Set(hidden.map(({ metric }) => metric)).size;
  const isShown = params.get("attempts") === "all";
  if (isShown) params.delete("attempts");
  else params.set("attempts", "all");
  const first = Math.min(...hidden.map(({ step }) => step)).toLocaleString("en");
  const [who, verb] = attempts.length === 1 ? [`Attempt ${attempts[0]}`, "is"] : [`Attempts ${attempts.slice(0, -1).join(", ")} and ${attempts[attempts.length - 1]}`, "are"];
  const where = `in ${format.counted(metrics, "chart")}`;
  if (isShown) return [{ kind: "note", title: "All attempts are shown.", text: "", links: [["Hide repeated steps", address(path, params)]] }];
  return [{ kind: "note", title: `${who} ${verb} hidden from step ${first} on`, text: `${where}, because a later attempt repeats these steps.`, links: [["Show all attempts", address(path, params)]] }];
}

/** Create banners for runs with lost or late points. `totals` counts them if the lists are incomplete. */
export function runBanners(project: string, lost: api.Run[], late: api.Run[], totals = { lost: lost.length, late: late.length }): Banner[] {
  const banners: Banner[] = [];
  if (lost.length) {
    const runLinks = linksTo(project, lost, totals.lost, LOST_FILTER, (run) => format.count(run.lost));
    banners.push({ kind: "bad", title: "Data was lost", text: `in ${format.counted(totals.lost, "run")}:`, links: runLinks });
  }
  if (late.length) {
    const runLinks = linksTo(project, late, totals.late, LATE_FILTER, (run) => format.duration(run.lag ?? 0));
    banners.push({ kind: "warn", title: "Late data", text: `in ${format.counted(totals.late, "run")}:`, links: runLinks });
  }
  return banners;
}

function linksTo(project: string, affected: api.Run[], n: number, filter: string, amount: (run: api.Run) => string): [string, string][] {
  const named = affected.slice(0, MAX_LINKS).map((run): [string, string] => [`${run.name || run.id} (${amount(run)})`, address(["p", project, "runs", run.id])]);
  return n > named.length ? [...named, [`and ${n - named.length} more`, address(["p", project], { filter })]] : named;
}
