// Lists of metrics and fields, a page at a time: by section, by prefix, or by search.

import { json, queryString, reference, runPath } from "./api";
import type * as schemas from "./api.types";

/** A metric, with the fields that the server omits if they have their default. */
export interface Metric extends Omit<schemas.Metric, "stepped"> {
  scopes: string[];
  /** Whether the latest point of any of its series has a step. */
  stepped: boolean;
}

/** The panes that list metrics; each metric belongs to one of them. */
export type MetricPane = "charts" | "system" | "distributions";

export interface MetricQuery {
  pane?: MetricPane;
  /** Start of the names. */
  prefix?: string;
  /** Regular expression, or text if it is not a valid one. */
  search?: string;
  /** Whether to leave out names with a slash after the prefix. */
  direct?: boolean;
  limit?: number;
  /** Name of the last metric or section of the page before. */
  after?: string | null;
}

export interface MetricPage {
  /** Sorted by name. Metrics that share a name are on the same page. */
  metrics: Metric[];
  /** Value of `after` for the next page; null on the last page. */
  next: string | null;
  /** Number of names on all pages. */
  total: number;
}

export type SectionPage = schemas.Sections;

/** Number of runs that the server accepts in one request. */
export const MAX_RUNS = 200;

/** Parameters that select the metrics of a pane. */
const PANES: Record<MetricPane, Record<string, string>> = {
  charts: { kind: "number", system: "false" },
  system: { kind: "number", system: "true" },
  distributions: { kind: "distribution" },
};

/** Path of a list of metrics of one run, or of several, whose metrics the server merges. */
function listPath(kind: string, project: string, ids: string[], { pane, direct, ...query }: MetricQuery): string {
  const [only = ""] = ids;
  const parameters = { ...query, ...(pane ? PANES[pane] : {}), ...(direct ? { direct: "true" } : {}) };
  if (ids.length === 1) return `${runPath(only)}/${kind}${queryString({ project, ...parameters })}`;
  const runs = ids.slice(0, MAX_RUNS).map((id) => reference(project, id)).join(",");
  return `/${kind}${queryString({ runs, ...parameters })}`;
}

/** Read a page of the metrics of runs. */
export async function metrics(project: string, ids: string[], query: MetricQuery, signal?: AbortSignal): Promise<MetricPage> {
  const page = await json<schemas.Metrics>(listPath("metrics", project, ids, query), signal ? { signal } : {});
  return { ...page, metrics: page.metrics.map(withDefaults) };
}

/** Fill in the fields that the server omits if they have their default. */
function withDefaults(metric: schemas.Metric): Metric {
  return { ...metric, scopes: metric.scopes ?? [""], stepped: metric.stepped ?? metric.last_step !== null };
}

/** Read the sections directly below a prefix, with the number of metrics in each. */
export async function sections(project: string, ids: string[], query: MetricQuery, signal?: AbortSignal): Promise<SectionPage> {
  return json(listPath("sections", project, ids, query), signal ? { signal } : {});
}

/** Read names of configuration entries and metrics of a project, as the filter language writes them. */
export async function fields(project: string, query: { prefix?: string; search?: string; kind?: "config" | "summary"; limit?: number }, signal?: AbortSignal): Promise<schemas.Fields> {
  return json(`/fields${queryString({ project, ...query })}`, signal ? { signal } : {});
}

/** A regular expression that matches exactly these texts. */
export function anyOf(texts: string[]): string {
  return `^(${texts.map((text) => text.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&")).join("|")})$`;
}
