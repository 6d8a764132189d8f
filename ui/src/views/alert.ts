// What an alert says: those that scripts raise (title, text, level) and those of the server (kind, message).

import type { TelemetryEvent } from "../api";

export interface Alert {
  title: string;
  text: string;
  level: string;
  serious: boolean;
}

const TITLES: Record<string, string> = { nan: "Not finite", spike: "Spike", stall: "Stalled", threshold: "Beyond a bound" };

export function alertOf({ body }: TelemetryEvent): Alert {
  const { title, text, level, kind, message } = (body ?? {}) as Record<string, unknown>;
  const own = String(kind ?? "");
  // The server notices only what somebody should look at.
  const grave = String(level ?? (own === "nan" ? "ERROR" : own ? "WARN" : "INFO"));
  return {
    title: String(title ?? TITLES[own] ?? own),
    text: String(text ?? message ?? ""),
    level: grave,
    serious: grave === "ERROR" || grave === "WARN",
  };
}
