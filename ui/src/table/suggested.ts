// What the runs table shows when nobody has chosen yet: how runs are doing, and what they differ in.

import * as format from "../base/format";
import type { Run } from "../data/api";
import { SYSTEM_METRIC } from "../data/fields";

/** Columns for a table of which `sample` are some runs, and `fields` what they have. */
export function suggestedColumns(sample: Run[], fields: string[]): string[] {
  const differingKeys = fields.filter((key) => {
    if (!key.startsWith("config.")) return false;
    const values = new Set(sample.map((run) => JSON.stringify(format.flatten(run.config).get(key.slice("config.".length)))));
    return values.size > 1 || sample.length === 1;
  });
  const metrics = fields.filter((key) => key.startsWith("summary.") && !SYSTEM_METRIC.test(key.slice("summary.".length)));
  const shownMetrics = [...metrics].sort((a, b) => rank(a) - rank(b)).slice(0, 3);
  const spark = shownMetrics[0] ? [`spark.${shownMetrics[0].slice("summary.".length)}`] : [];
  return ["state", ...spark, ...shownMetrics, ...differingKeys.slice(0, 3), "last_time", "duration", "tags", "notes"];
}

/** Losses and accuracies tell more than learning rates. */
function rank(key: string): number {
  const position = [/(eval|val).*loss/, /(eval|val).*acc/, /loss/, /acc/].findIndex((pattern) => pattern.test(key));
  return position < 0 ? 9 : position;
}
