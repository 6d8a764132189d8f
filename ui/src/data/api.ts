// Client of the server's query API: types, requests, and decoding of binary arrays.

export type State = "running" | "finished" | "failed" | "crashed" | "preempted" | "stalled";
export type JsonNumber = number | "NaN" | "Infinity" | "-Infinity";

export interface Project {
  name: string;
  runs: number;
  last_time: string | null;
}

export interface Summary {
  last: JsonNumber;
  min: JsonNumber | null;
  max: JsonNumber | null;
  mean: JsonNumber | null;
  count: number;
  last_step: number | null;
}

export interface Run {
  id: string;
  project: string;
  name: string;
  state: State;
  attempt: number;
  started: string;
  ended: string | null;
  last_time: string;
  group: string;
  tags: string[];
  notes: string;
  archived: boolean;
  processes: number;
  points: number;
  /** Points that were dropped before they reached the server. */
  lost: number;
  /** Seconds between the timestamp of the newest point and the arrival of the latest data. */
  lag: number | null;
  config: Record<string, unknown>;
  summary: Record<string, Summary>;
}

export interface Process {
  id: string;
  attempt: number;
  rank: number | null;
  host: string | null;
  state: State | null;
  resource: Record<string, unknown>;
}

export interface RunDetail extends Omit<Run, "processes"> {
  processes: Process[];
  environment: Record<string, unknown>;
  losses: Record<string, number>;
}

export interface Metric {
  name: string;
  kind: "gauge" | "sum" | "histogram" | "exponential_histogram" | "summary";
  unit: string;
  description: string;
  temporality: "delta" | "cumulative" | null;
  monotonic: boolean | null;
  /** Names of the instrumentation scopes that record it; "" is tensormeter. */
  scopes: string[];
  attributes: Record<string, unknown>[];
  points: number;
  /** Whether the latest point of any of its series has a step. */
  stepped: boolean;
  processes: number;
  last: JsonNumber | null;
  last_step: number | null;
  last_time: string | null;
}

export interface Line {
  run: string;
  process: string;
  metric: string;
  kind: string;
  temporality: string | null;
  monotonic: boolean | null;
  scope: string;
  unit: string;
  attributes: Record<string, unknown>;
  x: Float64Array;
  y: Float64Array;
  /** Positions of gaps, see `Curve`. */
  gaps?: Float64Array | undefined;
  /** Number of points in the range. It exceeds the length of x if the server sampled them. */
  total: number;
}

export interface SeriesQuery {
  runs: string[];
  metrics: string[];
  x: string;
  start?: number;
  stop?: number;
  max_points?: number;
  process?: string;
  after?: string;
  attributes?: Record<string, unknown>;
}

/** Selects one of several metrics that share a name. */
export interface Variant {
  scope?: string;
  unit?: string;
  kind?: string;
  temporality?: string | null | undefined;
}

export interface Ranks {
  x: JsonNumber[];
  min: JsonNumber[];
  median: JsonNumber[];
  max: JsonNumber[];
  processes: number;
  lowest: string[];
  highest: string[];
}

export interface HistogramPoint {
  x: number;
  count: number;
  sum: JsonNumber | null;
  min: JsonNumber | null;
  max: JsonNumber | null;
  bounds: number[];
  counts: number[];
  quantiles?: [number, number][];
}

export interface TelemetryEvent {
  id: number;
  time: string;
  name: string;
  step: number | null;
  process: string;
  /** OTLP severity number from 1 (TRACE) to 24 (FATAL4); 0 if unset. */
  severity_number: number;
  severity_text: string;
  trace_id: string;
  span_id: string;
  scope: { name?: string; version?: string };
  attributes: Record<string, unknown>;
  body: unknown;
  /** Length of the body as JSON, in characters. */
  size: number;
}

export interface SeriesPage {
  series: Line[];
  cursor: string;
  /** Whether the server could not resume from the cursor; `series` then holds all points. */
  reset: boolean;
}

export interface RunsRequest {
  project?: string;
  filter?: string;
  sort?: string;
  limit?: number;
  offset?: number;
  fields?: string;
}

export type RunChange = Partial<Pick<Run, "name" | "tags" | "notes" | "group" | "archived">>;

export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly details: Record<string, unknown> = {},
  ) {
    super(message);
  }
}

const BASE = "/api/v1";
const COLUMNS = "application/vnd.tensormeter.columns";
const TOKEN = "tensormeter.token";

let token = sessionStorage.getItem(TOKEN);

export function setToken(value: string): void {
  token = value;
  sessionStorage.setItem(TOKEN, value);
}

export async function request(path: string, options: RequestInit = {}): Promise<Response> {
  const headers = new Headers(options.headers);
  if (token) headers.set("Authorization", `Bearer ${token}`);
  let response: Response;
  try {
    response = await fetch(BASE + path, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError(0, "unreachable", "The server is not reachable.");
  }
  if (!response.ok) throw await toApiError(response);
  return response;
}

async function toApiError(response: Response): Promise<ApiError> {
  try {
    const { error } = (await response.json()) as { error: { code: string; message: string } };
    const { code, message, ...details } = error;
    return new ApiError(response.status, code, message, details);
  } catch {
    return new ApiError(response.status, "error", `The server responded with status ${response.status}.`);
  }
}

async function json<T>(path: string, options: RequestInit = {}): Promise<T> {
  return (await (await request(path, options)).json()) as T;
}

const MAY_BE_EMPTY = new Set(["fields", "scope", "unit"]);

function queryString(parameters: Record<string, string | number | undefined | null>): string {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    // Empty parameters are omitted, except where empty has a meaning: no fields, no unit, no scope.
    if (value !== undefined && value !== null && (value !== "" || MAY_BE_EMPTY.has(name))) search.set(name, String(value));
  }
  const text = search.toString();
  return text ? `?${text}` : "";
}

const runPath = (id: string) => `/runs/${encodeURIComponent(id)}`;

export async function projects(): Promise<Project[]> {
  return (await json<{ projects: Project[] }>("/projects")).projects;
}

let damageListener: (texts: string[]) => void = () => {};

/** Set the listener for damage of the store. It receives the parts that the server left out of a response, for each such response. */
export function onStoreDamage(listener: (texts: string[]) => void): void {
  damageListener = listener;
}

export async function runs(query: RunsRequest, signal?: AbortSignal): Promise<{ runs: Run[]; total: number }> {
  const page = await json<{ runs: Run[]; total: number; damaged?: string[] }>(`/runs${queryString({ ...query })}`, signal ? { signal } : {});
  if (page.damaged) damageListener(page.damaged);
  return page;
}

export async function run(id: string, project: string): Promise<RunDetail> {
  return json(`${runPath(id)}${queryString({ project })}`);
}

export async function changeRun(id: string, project: string, change: RunChange): Promise<void> {
  await request(`${runPath(id)}${queryString({ project })}`, {
    method: "PATCH",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(change),
  });
}

export async function deleteRun(id: string, project: string): Promise<void> {
  await request(`${runPath(id)}${queryString({ project })}`, { method: "DELETE" });
}

export async function metrics(id: string, project: string): Promise<Metric[]> {
  return (await json<{ metrics: Metric[] }>(`${runPath(id)}/metrics${queryString({ project })}`)).metrics.map(withDefaults);
}

/** Fill in the fields that the server omits if they have their default. */
function withDefaults(metric: Metric): Metric {
  return { ...metric, scopes: metric.scopes ?? [""], stepped: metric.stepped ?? metric.last_step !== null };
}

/** Read the metrics of several runs, merged by the server. */
export async function metricsOf(ids: string[], project: string): Promise<Metric[]> {
  const runs = ids.map((id) => reference(project, id)).join(",");
  return (await json<{ metrics: Metric[] }>(`/metrics${queryString({ runs })}`)).metrics.map(withDefaults);
}

export async function ranks(
  id: string,
  parameters: { project: string; metric: string; x: string; start?: number; stop?: number; max_points?: number } & Variant,
): Promise<Ranks> {
  return json(`${runPath(id)}/ranks${queryString({ ...parameters })}`);
}

export async function histograms(
  id: string,
  parameters: { project: string; metric: string; process?: string; attributes?: string; x?: string; max_points?: number } & Variant,
): Promise<HistogramPoint[]> {
  return (await json<{ points: HistogramPoint[] }>(`${runPath(id)}/histograms${queryString({ ...parameters })}`)).points;
}

export async function events(
  id: string,
  parameters: { project: string; name?: string; key?: string; start?: string; stop?: string; limit?: number; max_body?: number },
): Promise<TelemetryEvent[]> {
  return (await json<{ events: TelemetryEvent[] }>(`${runPath(id)}/events${queryString(parameters)}`)).events;
}

/** Load an image as an object URL for `img`. It uses fetch, because `img` cannot send a token. */
export async function media(id: string, digest: string, project: string): Promise<string> {
  const response = await request(`${runPath(id)}/media/${encodeURIComponent(digest)}${queryString({ project })}`);
  return URL.createObjectURL(await response.blob());
}

/** A run as the API refers to it in lists: run ids are unique only within a project. */
export const reference = (project: string, id: string) => `${project}/${id}`;

const withoutProject = (run: string) => run.slice(run.lastIndexOf("/") + 1);

export async function series(query: SeriesQuery, signal?: AbortSignal): Promise<SeriesPage> {
  const response = await request("/query", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: COLUMNS },
    body: JSON.stringify(query),
    ...(signal ? { signal } : {}),
  });
  return decodeColumns(await response.arrayBuffer());
}

interface Column {
  offset: number;
  length: number;
}

/** Decode a columns response: u32 length of a JSON header, the header, then float64 arrays, aligned to 8 bytes, little-endian. */
export function decodeColumns(buffer: ArrayBuffer): SeriesPage {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length))) as {
    series: (Omit<Line, "x" | "y" | "gaps"> & { x: Column; y: Column; gaps?: Column })[];
    cursor: string;
    reset?: boolean;
    damaged?: string[];
  };
  if (header.damaged) damageListener(header.damaged);
  const column = ({ offset, length: n }: Column) => new Float64Array(buffer, offset, n);
  const lines = header.series.map(({ gaps, ...line }) => ({
    ...line,
    run: withoutProject(line.run),
    x: column(line.x),
    y: column(line.y),
    ...(gaps ? { gaps: column(gaps) } : {}),
  }));
  return { cursor: header.cursor, reset: header.reset === true, series: lines };
}

/** Convert a number of the API. NaN and infinities are sent as strings. */
export function toNumber(value: JsonNumber | null | undefined): number {
  return value === null || value === undefined ? Number.NaN : Number(value);
}
