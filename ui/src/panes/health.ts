// Header of a run: state, last update, progress, and banners for problems.

import { fill, fillOnChange, h } from "../base/dom";
import * as format from "../base/format";
import * as route from "../base/route";
import * as api from "../data/api";
import { isProvisional, ranksOf } from "../data/attempt";
import { alertOf, chartLinks, chiefAlert, metricOf, wordsOf } from "../selection/alert";
import type { RunSelection } from "../selection/runSelection";
import { isForeign, describeState, stateBadge } from "../widgets/badge";
import { type Banner, attemptBanners, drawBanners, isLate, runBanners } from "../widgets/banner";
import { endSummary } from "../widgets/endSummary";
import { failureOf } from "../widgets/failure";
import { lossSentences } from "../widgets/lossSummary";

const TICK_MS = 1000;
const ALERTS_MS = 5000;
const MAX_ALERTS = 200;
const LOSSES = "tensormeter.dropped";
const ATTEMPTS_MS = 20_000;
const MAX_ENDS = 1000;
const ENDED_BADLY: (api.State | undefined)[] = ["failed", "crashed", "preempted"];

export class Health {
  readonly element = h("div", { class: "health" });
  private readonly heading = h("div", { class: "heading" });
  private readonly facts = h("dl", { class: "facts" });
  private readonly banners = h("div", { class: "banners" });
  private connected = true;
  private alerts: api.TelemetryEvent[] = [];
  private ends: api.TelemetryEvent[] = [];
  private eventsReadAt = 0;
  private hidden: api.HiddenPart[] = [];
  private attemptsReadAt = 0;
  private eventsTimer = 0;
  private readonly timer = setInterval(() => this.drawFacts(), TICK_MS);

  constructor(private readonly selection: RunSelection) {
    this.element.append(this.heading, this.facts, this.banners);
  }

  close(): void {
    clearInterval(this.timer);
    clearTimeout(this.eventsTimer);
  }

  connection(connected: boolean): void {
    this.connected = connected;
    this.drawBanners();
  }

  /** Redraw what depends on the address. */
  apply(): void {
    if (this.hidden.length > 0) this.drawBanners();
  }

  update(): void {
    const { single, runs } = this.selection;
    if (single) {
      fill(this.heading, h("h1", {}, single.name || single.id), stateBadge(runs[0] ?? single), ...single.tags.map((tag) => h("span", { class: "tag" }, tag)));
      this.scheduleEvents();
    } else {
      const states = new Map<api.State, number>();
      for (const { state } of runs) states.set(state, (states.get(state) ?? 0) + 1);
      fill(
        this.heading,
        h("h1", {}, `${runs.length} runs`),
        ...[...states].map(([state, n]) => h("span", { class: `badge ${state}` }, `${n} ${state}`)),
      );
    }
    this.drawFacts();
    this.drawBanners();
  }

  /** Read alerts and run ends at most every few seconds; a last read follows the last update. */
  private scheduleEvents(): void {
    if (this.eventsTimer) return;
    this.eventsTimer = window.setTimeout(
      () => {
        this.eventsTimer = 0;
        if (!this.selection.single) return;
        void this.readEvents(this.selection.single);
        void this.readAttempts(this.selection.single);
      },
      Math.max(0, this.eventsReadAt + ALERTS_MS - Date.now()),
    );
  }

  private async readEvents({ id, project }: api.RunDetail): Promise<void> {
    this.eventsReadAt = Date.now();
    try {
      this.alerts = await api.events(id, { project, name: "tensormeter.alert", limit: MAX_ALERTS });
      if (ENDED_BADLY.includes(this.selection.runs[0]?.state)) {
        this.ends = await api.events(id, { project, name: "tensormeter.run.end", limit: MAX_ENDS });
      }
      this.drawBanners();
      const serious = chiefAlert(this.seriousAlerts());
      if (serious && (await this.selection.lookUp(wordsOf(serious)))) this.drawBanners();
    } catch {
      // The overview shows errors of events, so no banner is added here.
    }
  }

  /** Read which parts of earlier attempts are hidden, at most every few seconds as the run grows. */
  private async readAttempts({ id, project, attempt }: api.RunDetail): Promise<void> {
    if (attempt < 2 || Date.now() < this.attemptsReadAt + ATTEMPTS_MS) return;
    this.attemptsReadAt = Date.now();
    try {
      this.hidden = (await api.attempts(id, project)).hidden;
      this.drawBanners();
    } catch {
      this.attemptsReadAt = 0;
    }
  }

  private drawFacts(): void {
    const { single, runs, metrics } = this.selection;
    const run = runs[0];
    this.facts.hidden = !single || !run;
    if (!single || !run) return;
    const step = metrics.lastStep;
    const started = format.epoch(single.started);
    const end = single.ended ? format.epoch(single.ended) : run.state === "running" ? Date.now() / 1000 : format.epoch(single.last_time);
    const ranks = ranksOf(single);
    const alive = ranks.filter(({ state }) => state === "running" || state === null).length;
    const rate = step > 0 && end > started ? step / (end - started) : Number.NaN;
    const facts: [string, string, string?][] = [
      ["last update", format.ago(format.epoch(run.last_time)), format.moment(format.epoch(run.last_time))],
      ["step", step >= 0 ? step.toLocaleString("en").replaceAll(",", "\u2009") : "–"],
      ["steps/s", Number.isFinite(rate) ? format.number(rate) : "–", "over the whole run"],
      [single.ended ? "duration" : "running for", format.duration(end - started), `since ${format.moment(started)}`],
      ["ranks", run.state === "running" && alive < ranks.length ? `${alive} of ${ranks.length}` : String(ranks.length)],
    ];
    if (isProvisional(single)) facts.push(["attempt", `${single.attempt}, provisional`, "attempts on other machines may have the same number"]);
    else if (single.attempt > 1) facts.push(["attempt", String(single.attempt), "the run was resumed"]);
    fillOnChange(this.facts, facts, () => facts.map(([name, value, title]) => h("div", { title }, h("dt", {}, name), h("dd", {}, value))));
  }

  private drawBanners(): void {
    const { single, runs, project } = this.selection;
    const banners: Banner[] = [];
    if (!this.connected) banners.push({ kind: "warn", title: "Not live", text: "The server is not reachable. This page reconnects automatically; the values shown may be outdated." });
    if (single) banners.push(...this.singleRunBanners(single, runs[0] ?? single));
    else banners.push(...runBanners(project, runs.filter(({ lost }) => lost > 0), runs.filter(isLate)));
    drawBanners(this.banners, banners);
  }

  /** Alerts to show in a banner, the newest first. Losses have a banner of their own, which names their reasons. */
  private seriousAlerts(): api.TelemetryEvent[] {
    return this.alerts.filter((event) => alertOf(event).serious && metricOf(event) !== LOSSES);
  }

  private singleRunBanners(run: api.RunDetail, { state }: Pick<api.Run, "state">): Banner[] {
    const banners: Banner[] = [];
    if (state === "stalled" || ENDED_BADLY.includes(state)) {
      const overview = route.address(["p", run.project, "runs", run.id, "overview"]);
      const links: [string, string][] = failureOf(run, this.ends) ? [["Show the traceback", overview]] : [];
      const why = state === "stalled" ? "" : endSummary(run, this.ends);
      banners.push({ kind: state === "preempted" || isForeign(run) ? "warn" : "bad", title: isForeign(run) ? "Idle" : state, text: [describeState(state, isForeign(run)), why].filter(Boolean).join(" "), links });
    }
    const losses = lossSentences(run.losses);
    if (losses.length) banners.push({ kind: "bad", title: "Data was lost.", text: losses.join(" ") });
    if (isLate({ state, lag: run.lag })) {
      banners.push({ kind: "warn", title: "Late data.", text: `The newest point is ${format.duration(run.lag ?? 0)} older than the last update. Points wait on the training node until they can be sent.` });
    }
    banners.push(...attemptBanners(this.hidden));
    const serious = this.seriousAlerts();
    const chief = chiefAlert(serious);
    if (chief) {
      const { title, text, level } = alertOf(chief);
      const { step } = chief;
      const words = [text, step === null || text.includes(`step ${step}`) ? "" : `(step ${step})`, serious.length > 1 ? `and ${serious.length - 1} more (see Overview)` : ""];
      banners.push({ kind: level === "ERROR" ? "bad" : "warn", title, text: words.filter(Boolean).join(" "), links: chartLinks(chief, this.selection) });
    }
    return banners;
  }
}
