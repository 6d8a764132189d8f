// What the first picture needs is asked for while most of the page's own code is still on its way.

import type { Route } from "../base/route";
import { acrossRanks, readLook } from "../chart/chartOptions";
import { charted, sections } from "../selection/metricSections";
import { Session } from "../selection/runSelection";

/** Pixels that a chart takes at least, that stand beside and above all of them, and that the list of several runs takes. */
const CHART = { width: 372, height: 290 };
const AROUND = { width: 20, height: 170 };
const LIST = 250;

/** The runs that an address shows, and the points of the charts that will be in sight at first. */
export function askAhead({ path, params }: Route): Session | null {
  const [kind, project, section, ids, tab = "charts"] = path;
  if (kind !== "p" || project === undefined || section !== "runs" || !ids) return null;
  const session = new Session(project, ids.split(","));
  // Who shows the session waits for the same, and tells what went wrong.
  session.load().then(
    () => tab === "charts" && readAhead(session, params),
    () => {},
  );
  return session;
}

function readAhead(session: Session, params: URLSearchParams): void {
  const { feed, ids } = session;
  const look = readLook(params, session.axis);
  const order = sections(charted(session.charts, params.get("q") ?? ""), (metric) => ({ title: metric.title, metric }));
  const width = innerWidth - AROUND.width - (ids.length > 1 ? LIST : 0);
  const inSight = Math.max(1, Math.floor(width / CHART.width)) * Math.ceil((innerHeight - AROUND.height) / CHART.height);
  feed.want({ x: look.x, chosen: look.chosen, window: look.window });
  const first = order.flatMap(({ sources }) => sources).slice(0, inSight);
  feed.ahead([...new Set(first.filter(({ metric }) => !acrossRanks(metric, look)).map(({ metric }) => metric.name))]);
}
