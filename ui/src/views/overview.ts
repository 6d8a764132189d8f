// What a run is: how it ended, alerts, configuration, environment, processes, what happened.

import * as api from "../api";
import { button, fill, h, type Child } from "../dom";
import * as format from "../format";
import type { Update } from "../live";
import { go } from "../route";
import { stateBadge, meaning } from "./badge";
import type { Session } from "./session";
import type { Pane } from "./workspace";

const FIRST: [string, string][] = [
  ["command", "process.command_line"],
  ["arguments", "process.command_args"],
  ["git commit", "vcs.ref.head.revision"],
  ["git branch", "vcs.ref.head.name"],
  ["repository", "vcs.repository.url.full"],
  ["host", "host.name"],
  ["Python", "process.runtime.version"],
  ["system", "os.description"],
];
const SHOWN_PROCESSES = 600;

export class OverviewPane implements Pane {
  readonly element = h("div", { class: "pane" });
  private events: api.TelemetryEvent[] = [];
  private problem = "";
  private shown = "";

  constructor(private readonly session: Session) {
    void this.load();
  }

  apply(): void {
    this.draw();
  }

  onUpdate(update: Update): void {
    if (update.events || update.state) void this.load();
  }

  onMetrics(): void {
    this.draw();
  }

  close(): void {}

  private async load(): Promise<void> {
    const [run = ""] = this.session.ids;
    try {
      this.events = await api.events(run, { project: this.session.project, limit: 200 });
      this.problem = "";
    } catch (error) {
      this.problem = error instanceof Error ? error.message : String(error);
    }
    this.draw();
  }

  private draw(): void {
    const run = this.session.single;
    if (!run) return;
    const shown = JSON.stringify([run, this.events, this.problem]);
    if (shown === this.shown) return;
    this.shown = shown;
    const environment = new Map(Object.entries(run.environment ?? {}));
    const first = FIRST.flatMap(([label, key]): [string, Child][] => {
      const value = environment.get(key);
      return value === undefined ? [] : [[label, Array.isArray(value) ? value.join(" ") : format.value(value)]];
    });
    const alerts = this.events.filter(({ name }) => name === "tensormeter.alert");
    const others = this.events.filter(({ name }) => !/^tensormeter\.(alert|table|image|text|run\.heartbeat)$/.test(name));
    const losses = Object.entries(run.losses ?? {}).filter(([, n]) => n > 0);
    const notes = h("textarea", { rows: 3, "aria-label": "Notes", placeholder: "Notes", on: { change: () => void this.save(run, { notes: notes.value }) } });
    notes.value = run.notes;
    const tags = h("input", { value: run.tags.join(", "), "aria-label": "Tags, separated by commas", placeholder: "tags, separated by commas", on: { change: () => void this.save(run, { tags: tags.value.split(",").map((tag) => tag.trim()).filter(Boolean) }) } });
    fill(
      this.element,
      h(
        "div",
        { class: "content overview" },
        panel(
          "Run",
          facts([
            ["state", h("span", {}, stateBadge(run), " ", h("span", { class: "muted" }, meaning(run.state)))],
            ["id", run.id],
            ["started", format.moment(format.epoch(run.started))],
            ["ended", run.ended ? format.moment(format.epoch(run.ended)) : "not yet"],
            ["last heard", `${format.moment(format.epoch(run.last_time))} (${format.ago(format.epoch(run.last_time))})`],
            ["attempt", String(run.attempt)],
            ["group", run.group || "–"],
            ["exit", exitWords(this.events)],
            ["points", run.points === undefined ? "–" : format.count(run.points)],
            ["lost", losses.length ? losses.map(([reason, n]) => `${format.count(n)} ${reason}`).join(", ") : "nothing"],
            ...first,
          ]),
          h("label", {}, "Tags ", tags),
          h("label", {}, "Notes ", notes),
          h(
            "p",
            { class: "row-of-buttons" },
            button(run.archived ? "Bring back from the archive" : "Archive", () => void this.save(run, { archived: !run.archived })),
            button("Delete …", () => this.remove(run), { class: "danger" }),
          ),
        ),
        panel(
          "Alerts",
          this.problem ? h("p", { class: "problem" }, this.problem) : null,
          alerts.length ? h("ul", { class: "events" }, ...alerts.map(alertItem)) : h("p", { class: "muted" }, "None. A NaN, a spike or a stall would be here."),
        ),
        panel("Configuration", table([...format.flatten(run.config)].map(([key, value]) => [key, format.value(value)]), "No configuration was given to init.")),
        panel("Environment", table([...environment].sort().map(([key, value]) => [key, Array.isArray(value) ? value.join(" ") : format.value(value)]), "The processes said nothing about their environment.")),
        panel(
          `Processes (${run.processes.length})`,
          h(
            "div",
            { class: "scroll", tabindex: 0, role: "region", "aria-label": "Processes" },
            h(
              "table",
              { class: "plain" },
              h("thead", {}, h("tr", {}, ...["rank", "host", "state", "process"].map((name) => h("th", { scope: "col" }, name)))),
              h(
                "tbody",
                {},
                ...[...run.processes]
                  .sort((a, b) => (a.rank ?? 1e9) - (b.rank ?? 1e9))
                  .slice(0, SHOWN_PROCESSES)
                  .map(({ id, rank, host, state }) => h("tr", {}, h("td", {}, rank ?? "–"), h("td", {}, host ?? "–"), h("td", {}, state ?? "–"), h("td", { class: "mono" }, id))),
              ),
            ),
          ),
        ),
        panel(
          "What happened",
          others.length ? h("ul", { class: "events" }, ...others.map(eventItem)) : h("p", { class: "muted" }, "No events."),
        ),
      ),
    );
  }

  private async save(run: api.RunDetail, change: api.RunChange): Promise<void> {
    try {
      await api.changeRun(run.id, run.project, change);
      Object.assign(run, change);
    } catch (error) {
      this.problem = error instanceof Error ? error.message : String(error);
    }
    this.draw();
  }

  private remove(run: api.RunDetail): void {
    const dialog = h("dialog", { "aria-label": "Delete the run" });
    dialog.addEventListener("close", () => dialog.remove());
    fill(
      dialog,
      h("h2", {}, `Delete ${run.name || run.id}?`),
      h("p", {}, "All its points are removed from the server. There is no way back."),
      h(
        "p",
        { class: "row-of-buttons" },
        button("Delete", async () => {
          try {
            await api.deleteRun(run.id, run.project);
            dialog.close();
            go(["p", run.project]);
          } catch (error) {
            dialog.append(h("p", { class: "problem", role: "alert" }, error instanceof Error ? error.message : String(error)));
          }
        }, { class: "danger" }),
        button("Keep it", () => dialog.close()),
      ),
    );
    this.element.append(dialog);
    dialog.showModal();
  }
}

function panel(title: string, ...content: Child[]): HTMLElement {
  return h("section", { class: "panel", "aria-label": title }, h("h2", {}, title), ...content);
}

function facts(rows: [string, Child][]): HTMLElement {
  return h("dl", { class: "facts long" }, ...rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
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

function alertItem(event: api.TelemetryEvent): HTMLElement {
  const { title, text, level } = (event.body ?? {}) as Record<string, unknown>;
  const kind = level === "ERROR" ? "bad" : level === "WARN" ? "warn" : "";
  return h("li", { class: kind }, h("strong", {}, `${level ?? "INFO"} ${title ?? ""}`), " ", String(text ?? ""), " ", when(event));
}

function eventItem(event: api.TelemetryEvent): HTMLElement {
  const body = event.body === null || event.body === undefined ? "" : JSON.stringify(event.body).slice(0, 300);
  return h("li", {}, h("strong", {}, event.name.replace(/^tensormeter\./, "")), " ", h("span", { class: "mono" }, body), " ", when(event));
}

function when({ time, step }: api.TelemetryEvent): HTMLElement {
  return h("span", { class: "muted" }, `${step === null ? "" : `step ${step} · `}${format.moment(format.epoch(time))}`);
}
