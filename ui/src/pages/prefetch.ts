// Requests the data of the first view while most of the page's code is still loading.

import type { Route } from "../base/route";
import { axisChoice, usesRankStatistics, readChartOptions } from "../chart/chartOptions";
import { foldsIn } from "../selection/metricTree";
import { RunSelection } from "../selection/runSelection";

/** Sizes in pixels: the smallest chart, the margins around all charts, and the list of several runs. */
const CHART = { width: 372, height: 290 };
const MARGINS = { width: 20, height: 170 };
const LIST = 250;

/** Load the runs in the address, and the points of the charts that will be visible first. */
export function prefetch({ path, params }: Route): RunSelection | null {
  const [kind, project, section, ids, tab = "charts"] = path;
  if (kind !== "p" || project === undefined || section !== "runs" || !ids) return null;
  const selection = new RunSelection(project, ids.split(","), tab === "charts" ? (params.get("q") ?? "") : undefined);
  // Errors are handled by the page, which waits for the same promise.
  selection.load().then(
    () => tab === "charts" && prefetchPoints(selection, params),
    () => {},
  );
  return selection;
}

function prefetchPoints(selection: RunSelection, params: URLSearchParams): void {
  const { cache, ids } = selection;
  const options = readChartOptions(params, selection.axis);
  const width = innerWidth - MARGINS.width - (ids.length > 1 ? LIST : 0);
  const inSight = Math.max(1, Math.floor(width / CHART.width)) * Math.ceil((innerHeight - MARGINS.height) / CHART.height);
  cache.setAxis(axisChoice(options, selection.runs));
  const first = selection.tree.firstCharts(inSight, foldsIn(params));
  cache.prefetch([...new Set(first.filter((metric) => !usesRankStatistics(metric, options)).map(({ name }) => name))]);
}
