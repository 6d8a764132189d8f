// The server's query API: types, requests, and arrays in binary.

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
  /** Points that were dropped where it runs. */
  lost: number;
  /** Seconds between the time of its newest point and when something last arrived. */
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
  /** Names of the libraries that record it; "" is tensormeter itself. */
  scopes: string[];
  attributes: Record<string, unknown>[];
  points: number;
  /** Whether a latest point of its series has a step. */
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
  /** See `Curve`. */
  gaps?: Float64Array | undefined;
  /** Points that the range holds; more than x has, where the server left some out. */
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

/** Which of several metrics of one name. */
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
  /** OTLP's number, 1 (TRACE) to 24 (FATAL4); 0: none. */
  severity_number: number;
  severity_text: string;
  trace_id: string;
  span_id: string;
  scope: { name?: string; version?: string };
  attributes: Record<string, unknown>;
  body: unknown;
  /** Characters of the body as JSON. */
  size: number;
}

export interface SeriesPage {
  series: Line[];
  cursor: string;
  /** The server forgot what came after the cursor; `series` holds everything. */
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
    throw new ApiError(0, "unreachable", "The server does not answer.");
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
    return new ApiError(response.status, "error", `The server answered ${response.status}.`);
  }
}

async function json<T>(path: string, options: RequestInit = {}): Promise<T> {
  return (await (await request(path, options)).json()) as T;
}

const MAY_BE_EMPTY = new Set(["fields", "scope", "unit"]);

function queryString(parameters: Record<string, string | number | undefined | null>): string {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    // An empty list of fields means none of them, an empty unit or scope means none; of all others, empty means not given.
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

/** The listener gets what the server has left out of an answer because its store is damaged, again with each answer. */
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

/** With what the server leaves out where it is as usual. */
function withDefaults(metric: Metric): Metric {
  return { ...metric, scopes: metric.scopes ?? [""], stepped: metric.stepped ?? metric.last_step !== null };
}

/** What any of several runs has. */
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

/** An image as an address for `img`. It goes through fetch because `img` cannot send a token. */
export async function media(id: string, digest: string, project: string): Promise<string> {
  const response = await request(`${runPath(id)}/media/${encodeURIComponent(digest)}${queryString({ project })}`);
  return URL.createObjectURL(await response.blob());
}

/** A run in a list of runs: ids may repeat over projects. */
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

/** u32 length of a JSON header, the header, then its arrays of float64, aligned to 8 bytes, little-endian. */
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

/** A number of the API; NaN and the infinities travel as strings. */
export function toNumber(value: JsonNumber | null | undefined): number {
  return value === null || value === undefined ? Number.NaN : Number(value);
}
