// Reads fields of runs by the names that columns, groups and filters use.

import * as format from "../base/format";
import type * as api from "./api";

/** Matches metrics that the training script did not log: metrics of the system and of tensormeter itself. */
export const SYSTEM_METRIC = /^(system|process|hw|container|k8s|tensormeter|phase|cpython|gc)\./;

/** Read a field of a run by its name in the filter language. */
export function fieldValue(run: api.Run, name: string): unknown {
  if (name.startsWith("config.")) {
    const key = name.slice("config.".length);
    return key in run.config ? run.config[key] : format.flatten(run.config).get(key);
  }
  if (name.startsWith("summary.")) {
    const key = name.slice("summary.".length);
    const cut = key.lastIndexOf(".");
    const summary = run.summary[key];
    if (summary) return summary.value;
    return (run.summary[key.slice(0, cut)] as Record<string, unknown> | undefined)?.[key.slice(cut + 1)];
  }
  if (name === "duration") {
    const end = run.ended ?? (run.state === "running" ? null : run.last_time);
    return (end === null ? Date.now() / 1000 : format.epoch(end)) - format.epoch(run.started);
  }
  return run[name as keyof api.Run];
}

export function fieldText(run: api.Run, name: string): string {
  const value = fieldValue(run, name);
  return Array.isArray(value) ? value.join(", ") || "none" : format.value(value);
}
