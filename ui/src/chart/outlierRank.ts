/** Finds the rank that stands out of the others in a metric: the straggler. */

import * as api from "../data/api";

/** Name the rank that is nearly always the highest or lowest, and far from the median. */
export function outlierRank(ranks: api.Ranks, name: (process: string) => string): string {
  const n = ranks.x.length;
  if (n < 4 || ranks.processes < 3) return "";
  const remarks: string[] = [];
  for (const [words, extreme, values] of [
    ["highest", ranks.highest, ranks.max],
    ["lowest", ranks.lowest, ranks.min],
  ] as const) {
    const tally = new Map<string, number>();
    for (const process of extreme.slice(-200)) tally.set(process, (tally.get(process) ?? 0) + 1);
    const [top, times] = [...tally].sort((a, b) => b[1] - a[1])[0] ?? ["", 0];
    const share = times / Math.min(n, 200);
    let distance = 0;
    let spread = 0;
    for (let i = Math.max(0, n - 200); i < n; i++) {
      const median = api.toNumber(ranks.median[i]);
      distance += Math.abs(api.toNumber(values[i]) - median) || 0;
      spread += Math.abs(api.toNumber(ranks.max[i]) - api.toNumber(ranks.min[i])) || 0;
    }
    if (share > 0.6 && distance > spread * 0.6) remarks.push(`${name(top)} is the ${words} ${Math.round(share * 100)} % of the time`);
  }
  return remarks.join("; ");
}
