// Default columns of the runs table: the state of runs, and the settings in which they differ.

import * as format from "../base/format";
import type { Run } from "../data/api";
import { SYSTEM_METRIC } from "../data/fields";

/** Facts that integrations and imports add to the configuration. Settings of the script are suggested first. */
const ADDED = /^config\.(hydra|optuna|ray|tags)\./;

/** Suggest columns from a sample of runs and their fields. */
export function suggestedColumns(sample: Run[], fields: string[]): string[] {
  const differingKeys = fields.filter((key) => {
    if (!key.startsWith("config.")) return false;
    const values = new Set(sample.map((run) => JSON.stringify(format.flatten(run.config).get(key.slice("config.".length)))));
    return values.size > 1 || sample.length === 1;
  });
  differingKeys.sort((a, b) => Number(ADDED.test(a)) - Number(ADDED.test(b)));
  const metrics = fields.filter((key) => key.startsWith("summary.") && !SYSTEM_METRIC.test(key.slice("summary.".length)));
  const shownMetrics = [...metrics].sort((a, b) => rank(a) - rank(b)).slice(0, 3);
  const spark = shownMetrics[0] ? [`spark.${shownMetrics[0].slice("summary.".length)}`] : [];
  return ["state", ...spark, ...shownMetrics, ...differingKeys.slice(0, 3), "last_time", "duration", "tags", "notes"];
}

/** Matches the metrics that are suggested first. */
export const SUGGESTED_METRICS = "loss|acc";

/** Priority of a metric: losses and accuracies before learning rates. */
function rank(key: string): number {
  const position = [/(eval|val).*loss/, /(eval|val).*acc/, /loss/, /acc/].findIndex((pattern) => pattern.test(key));
  return position < 0 ? 9 : position;
}
