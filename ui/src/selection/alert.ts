// Reads alerts: those of scripts have title, text and level, those of the server kind and message.

import { address } from "../base/route";
import type { TelemetryEvent } from "../data/api";
import type { RunSelection } from "./runSelection";

export interface Alert {
  title: string;
  text: string;
  level: string;
  serious: boolean;
}

const TITLES: Record<string, string> = { nan: "Not finite", spike: "Spike", stall: "Stalled", threshold: "Threshold exceeded" };

const LEVELS = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"];

/** The level of a log record; "" if it has no severity. OTLP has four numbers per level. */
export function levelOf({ severity_number: number, severity_text: text }: TelemetryEvent): string {
  return LEVELS[Math.ceil(number / 4) - 1] ?? text;
}

/** CSS class of a list item with a record of this level. */
export function levelClass(level: string): string {
  return level === "ERROR" || level === "FATAL" ? "bad" : level === "WARN" ? "warn" : "";
}

export function alertOf(event: TelemetryEvent): Alert {
  const { body } = event;
  const { title, text, level, kind, message } = (typeof body === "string" ? { text: body } : (body ?? {})) as Record<string, unknown>;
  const serverKind = String(kind ?? "");
  // Alerts of the server are warnings at least.
  const severity = String(level ?? (serverKind === "nan" ? "ERROR" : serverKind ? "WARN" : levelOf(event) || "INFO"));
  return {
    title: String(title ?? TITLES[serverKind] ?? serverKind),
    text: String(text ?? message ?? ""),
    level: severity,
    serious: severity === "ERROR" || severity === "WARN",
  };
}

/** The metric that an alert of the server is about; "" for other alerts. */
export function metricOf({ body }: TelemetryEvent): string {
  const { metric } = (typeof body === "string" ? {} : (body ?? {})) as Record<string, unknown>;
  return String(metric ?? "");
}

/** The alert to show if there is room for one: the newest, or the first one about a value that is not finite, which is the likely cause of the others. */
export function chiefAlert(newestFirst: TelemetryEvent[]): TelemetryEvent | undefined {
  const isNotFinite = ({ body }: TelemetryEvent) => (body as Record<string, unknown> | null)?.kind === "nan";
  const [newest] = newestFirst;
  return newest && isNotFinite(newest) ? newestFirst.filter(isNotFinite).at(-1) : newest;
}

/** Link to the chart of an alert's metric. Alerts of the server name it; in those of scripts, any word may be its name. */
export function chartLinks(event: TelemetryEvent, selection: RunSelection): [string, string][] {
  const named = selection.findMetric(wordsOf(event));
  return named ? [[`Show ${named}`, address(["p", selection.project, "runs", ...selection.ids], { full: named })]] : [];
}

/** Words of an alert that may be names of metrics, to be looked up before `chartLinks`. */
export function wordsOf(event: TelemetryEvent): string[] {
  const { title, text } = alertOf(event);
  const words = `${title} ${text}`.split(/\s+/).map((word) => word.replace(/^["'`(]+|["'`).,:;!?]+$/g, ""));
  return [...new Set([metricOf(event), ...words])].filter(Boolean);
}
