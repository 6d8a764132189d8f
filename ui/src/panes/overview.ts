// Overview of a run: end, alerts, configuration, environment, processes, events.

import { arrange, fillOnChange, h, type Child } from "../base/dom";
import * as format from "../base/format";
import * as route from "../base/route";
import * as api from "../data/api";
import { attemptText } from "../data/attempt";
import type { Update } from "../data/live";
import { type LogLine, logs } from "../data/logs";
import { KINDS } from "../data/media";
import { alertOf, chartLinks, levelClass, levelOf, wordsOf } from "../selection/alert";
import { Provenance } from "../selection/provenance";
import { RunEditor } from "../selection/runEditor";
import type { RunSelection } from "../selection/runSelection";
import { isForeign, describeState, stateBadge } from "../widgets/badge";
import { failureContent, failureOf } from "../widgets/failure";
import { lossSentences } from "../widgets/lossSummary";
import type { Pane } from "./pane";

const MAIN_FACTS: [string, string][] = [
  ["command", "process.command_line"],
  ["arguments", "process.command_args"],
  ["git commit", "vcs.ref.head.revision"],
  ["git branch", "vcs.ref.head.name"],
  ["repository", "vcs.repository.url.full"],
  ["host", "host.name"],
  ["Python", "process.runtime.version"],
  ["system", "os.description"],
];
const MAX_PROCESSES = 600;
/** Size up to which bodies of events are read, in characters. Alerts are smaller, and other events are abbreviated anyway. */
const MAX_CHARACTERS = 100_000;
const MAX_ENDS = 1000;
/** Number of log lines to read: the last ones may be the traceback. */
const LAST_LINES = 100;

/** Names of events that other panels and panes show. */
const SHOWN_ELSEWHERE = new Set(["alert", "artifact", "run.code", "run.heartbeat", ...KINDS].map((name) => `tensormeter.${name}`));

export class OverviewPane implements Pane {
  private readonly content = h("div", { class: "content overview" });
  readonly element = h("div", { class: "pane" }, this.content);
  private readonly facts = h("dl", { class: "facts long" });
  private readonly editor: RunEditor;
  /** Panels by title, with a key of their contents. */
  private readonly panels = new Map<string, { key: string; element: HTMLElement }>();
  private readonly run: HTMLElement;
  private readonly provenance: Provenance;
  private events: api.TelemetryEvent[] = [];
  /** Ends of the processes and last lines of the log, of a run that failed. */
  private ends: api.TelemetryEvent[] = [];
  private lastLines: LogLine[] = [];
  private problem = "";

  constructor(private readonly selection: RunSelection) {
    this.provenance = new Provenance(selection, true);
    this.editor = new RunEditor(selection, () => this.draw());
    this.run = panel("Run", this.facts, this.editor.element);
    void this.load();
  }

  apply(): void {
    this.draw();
  }

  onUpdate(update: Update): void {
    if (update.events || update.state) void this.load();
  }

  onReload(): void {
    this.draw();
  }

  close(): void {
    this.provenance.close();
  }

  private async load(): Promise<void> {
    const [run = ""] = this.selection.ids;
    this.provenance.refresh();
    try {
      const { project } = this.selection;
      this.events = await api.events(run, { project, limit: 200, max_body: MAX_CHARACTERS });
      const state = this.selection.runs[0]?.state;
      if (state === "failed" || state === "crashed") {
        this.ends = await api.events(run, { project, name: "tensormeter.run.end", limit: MAX_ENDS });
        this.lastLines = (await logs(run, { project, limit: LAST_LINES })).lines;
      } else {
        this.ends = [];
        this.lastLines = [];
      }
      this.problem = "";
    } catch (error) {
      this.problem = format.message(error);
    }
    this.draw();
    const alerts = this.events.filter(({ name }) => name === "tensormeter.alert");
    if (await this.selection.lookUp(alerts.flatMap(wordsOf))) this.draw();
  }

  private draw(): void {
    const run = this.selection.single;
    if (!run) return;
    const facts = runFacts(run, this.events).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)));
    fillOnChange(this.facts, facts.map(({ outerHTML }) => outerHTML), () => facts);
    this.editor.update();
    const { events, problem } = this;
    const alerts = events.filter(({ name }) => name === "tensormeter.alert");
    const others = events.filter(({ name }) => !SHOWN_ELSEWHERE.has(name));
    const config = [...format.flatten(run.config)].map(([key, value]): [string, string] => [key, format.setting(value)]);
    const results = Object.entries(run.results)
      .sort()
      .map(([key, value]): [string, string] => [key, format.setting(value)]);
    const environment = Object.entries(run.environment ?? {})
      .sort()
      .map(([key, value]): [string, string] => [key, toText(value)]);
    const failure = failureOf(run, this.ends);
    const logAddress = route.address(["p", this.selection.project, "runs", run.id, "logs"]);
    const failed = this.panel("Failure", [failure, this.lastLines], () => failureContent(failure, failure ? this.sourceOf(failure.event.process) : "", this.lastLines, logAddress));
    failed.classList.add("failure");
    arrange(this.content, [
      ...(failure || this.lastLines.length ? [failed] : []),
      this.run,
      this.panel("Alerts", [alerts, alerts.map((event) => chartLinks(event, this.selection)), problem], () => [
        problem ? h("p", { class: "problem" }, problem) : null,
        alerts.length ? h("ul", { class: "events" }, ...alerts.map((event) => alertItem(event, chartLinks(event, this.selection)))) : h("p", { class: "muted" }, "None. NaN values, spikes and stalls are listed here."),
      ]),
      ...(results.length > 0 ? [this.panel("Results", results, () => [table(results, "")])] : []),
      this.panel("Configuration", config, () => [table(config, "No configuration was passed to init.")]),
      ...this.provenance.panels,
      this.panel("Environment", environment, () => [table(environment, "No environment was reported.")]),
      this.panel("Processes", run.processes, () => [processTable(run.processes)]),
      this.panel("Events", others, () => [
        others.length ? h("ul", { class: "events" }, ...others.map(eventItem)) : h("p", { class: "muted" }, "No events."),
      ]),
    ]);
  }

  /** The rank and host of a process; "" if it is the only one. */
  private sourceOf(process: string): string {
    const { processes = [], id = "" } = this.selection.single ?? {};
    return processes.length > 1 ? this.selection.processName(id, process) : "";
  }

  /** Create a panel, or return the existing one if its contents are unchanged, so that scroll position and selection are kept. */
  private panel(title: string, content: unknown, make: () => Child[]): HTMLElement {
    const key = JSON.stringify(content);
    const existing = this.panels.get(title);
    if (existing?.key === key) return existing.element;
    const element = panel(title, ...make());
    this.panels.set(title, { key, element });
    return element;
  }
}

function parentLink(project: string, { run, step }: NonNullable<api.RunDetail["parent"]>): Child {
  return h("span", {}, h("a", { href: route.address(["p", project, "runs", run]) }, run), ` at step ${step.toLocaleString("en")}`);
}

function runFacts(run: api.RunDetail, events: api.TelemetryEvent[]): [string, Child][] {
  const losses = lossSentences(run.losses);
  const environment = new Map(Object.entries(run.environment ?? {}));
  return [
    ["state", h("span", {}, stateBadge(run), " ", h("span", { class: "muted" }, describeState(run.state, isForeign(run))))],
    ["id", run.id],
    ...(run.parent ? [["forked from", parentLink(run.project, run.parent)] as [string, Child]] : []),
    ["started", format.moment(format.epoch(run.started))],
    ["ended", run.ended ? format.moment(format.epoch(run.ended)) : "not yet"],
    ["last update", format.moment(format.epoch(run.last_time))],
    ["attempt", attemptText(run)],
    ["group", run.group || "–"],
    ["job type", run.job_type || "–"],
    ["exit", exitWords(events)],
    ["stored points", run.points === undefined ? "–" : format.count(run.points)],
    ["lost", losses.length ? losses.join(" ") : "nothing"],
    ...MAIN_FACTS.flatMap(([label, key]): [string, Child][] => (environment.has(key) ? [[label, toText(environment.get(key))]] : [])),
  ];
}

function toText(value: unknown): string {
  return Array.isArray(value) ? value.join(" ") : format.value(value);
}

function processTable(processes: api.Process[]): HTMLElement {
  const visible = [...processes].sort((a, b) => (a.rank ?? 1e9) - (b.rank ?? 1e9)).slice(0, MAX_PROCESSES);
  const cells = ({ id, rank, host, state }: api.Process) => [h("td", {}, rank ?? "–"), h("td", {}, host ?? "–"), h("td", {}, state ?? "–"), h("td", { class: "mono" }, id)];
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "Processes" },
    h(
      "table",
      { class: "plain" },
      h("thead", {}, h("tr", {}, ...["rank", "host", "state", "process"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, ...visible.map((process) => h("tr", {}, ...cells(process)))),
    ),
    processes.length > visible.length && h("p", { class: "muted" }, `and ${processes.length - visible.length} more`),
  );
}

function panel(title: string, ...content: Child[]): HTMLElement {
  return h("section", { class: "panel", "aria-label": title }, title === "Failure" ? null : h("h2", {}, title), ...content);
}

function table(rows: [string, string][], none: string): HTMLElement {
  if (rows.length === 0) return h("p", { class: "muted" }, none);
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Values" }, h("table", { class: "plain" }, h("tbody", {}, ...rows.map(([key, value]) => h("tr", {}, h("th", { scope: "row" }, key), h("td", { class: "mono" }, value))))));
}

function exitWords(events: api.TelemetryEvent[]): string {
  const end = events.find(({ name }) => name === "tensormeter.run.end");
  if (!end) return "–";
  const { state, message, exit_code: code, signal } = (end.body ?? {}) as Record<string, unknown>;
  return [state, code === undefined || code === null ? "" : `exit code ${code}`, signal ? `signal ${signal}` : "", message].filter(Boolean).join(", ");
}

function alertItem(event: api.TelemetryEvent, links: [string, string][]): HTMLElement {
  const { title, text, level } = alertOf(event);
  return h("li", { class: levelClass(level) }, h("strong", {}, `${level} ${title}`), " ", text, " ", ...links.map(([label, href]) => h("a", { href }, label)), " ", when(event));
}

function eventItem(event: api.TelemetryEvent): HTMLElement {
  const { name, body, size, scope, trace_id: trace, severity_text: severityText } = event;
  const content = body === null || body === undefined ? (size > MAX_CHARACTERS ? `(${format.count(size)} characters)` : "") : typeof body === "string" ? body : JSON.stringify(body);
  const level = levelOf(event);
  // Lifecycle events of runs have the level INFO, which needs no label.
  const labelled = level && !(name.startsWith("tensormeter.") && level === "INFO");
  return h(
    "li",
    { class: levelClass(level) },
    h("strong", { title: severityText && severityText !== level ? `severity ${severityText}` : undefined }, [labelled ? level : "", name.replace(/^tensormeter\./, "")].filter(Boolean).join(" ")),
    " ",
    h("span", { class: "mono" }, content.slice(0, 300)),
    " ",
    when(event),
    scope.name && scope.name !== "tensormeter" ? h("span", { class: "muted" }, ` · ${scope.name}`) : null,
    trace ? h("span", { class: "muted" }, ` · trace ${trace}`) : null,
  );
}

function when({ time, step }: api.TelemetryEvent): HTMLElement {
  return h("span", { class: "muted" }, `${step === null ? "" : `step ${step} · `}${format.moment(format.epoch(time))}`);
}
