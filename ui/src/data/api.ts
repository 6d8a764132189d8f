// Client of the server's query API: requests, and decoding of binary arrays. The types of its documents are generated.

import type * as schemas from "./api.types";

export type { HiddenPart, Project, Ranks, Run, Summary } from "./api.types";

export type State = schemas.Run["state"];
/** A number of the API; NaN and infinities are sent as strings. */
export type JsonNumber = NonNullable<schemas.Metric["last"]>;
export type RunChange = Partial<Pick<schemas.Run, keyof schemas.RunChanges>>;
export type SeriesQuery = schemas.Query;
export type TelemetryEvent = schemas.Event;
/** Selects one of several metrics that share a name. */
export type Variant = Partial<schemas.Variant>;

export interface Process extends schemas.Process {
  rank: number | null;
  host: string | null;
}

export interface RunDetail extends schemas.RunDetails {
  processes: Process[];
}

export interface Line extends Omit<schemas.SampledArrays, "x" | "y" | "gaps"> {
  x: Float64Array;
  y: Float64Array;
  /** Positions of gaps, see `Curve`. */
  gaps?: Float64Array | undefined;
}

export interface HistogramPoint extends schemas.HistogramPoint {
  x: number;
  bounds: number[];
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

export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
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
    throw new ApiError(0, "The server is not reachable.");
  }
  if (!response.ok) throw await toApiError(response);
  return response;
}

async function toApiError(response: Response): Promise<ApiError> {
  try {
    const { error } = (await response.json()) as schemas.Error;
    return new ApiError(response.status, error.message);
  } catch {
    return new ApiError(response.status, `The server responded with status ${response.status}.`);
  }
}

export async function json<T>(path: string, options: RequestInit = {}): Promise<T> {
  return (await (await request(path, options)).json()) as T;
}

const MAY_BE_EMPTY = new Set(["fields", "scope", "unit"]);

export function queryString(parameters: Record<string, string | number | undefined | null>): string {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    // Empty parameters are omitted, except where empty has a meaning: no fields, no unit, no scope.
    if (value !== undefined && value !== null && (value !== "" || MAY_BE_EMPTY.has(name))) search.set(name, String(value));
  }
  const text = search.toString();
  return text ? `?${text}` : "";
}

export const runPath = (id: string) => `/runs/${encodeURIComponent(id)}`;

export async function projects(): Promise<schemas.Project[]> {
  return (await json<schemas.Projects>("/projects")).projects;
}

let damageListener: (texts: string[]) => void = () => {};

/** Set the listener for damage of the store. It receives the parts that the server left out of a response, for each such response. */
export function onStoreDamage(listener: (texts: string[]) => void): void {
  damageListener = listener;
}

export async function runs(query: RunsRequest, signal?: AbortSignal): Promise<schemas.Runs> {
  const page = await json<schemas.Runs>(`/runs${queryString({ ...query })}`, signal ? { signal } : {});
  if (page.damaged) damageListener(page.damaged);
  return page;
}

/** Read the runs with these ids, archived ones included. */
export async function runsById(project: string, ids: string[], fields: string, signal?: AbortSignal): Promise<schemas.Run[]> {
  const filter = `id in (${ids.map((id) => JSON.stringify(id)).join(", ")}) and archived in (true, false)`;
  return (await runs({ project, filter, limit: 1000, fields }, signal)).runs;
}

/** Read a run without the statistics of its metrics, which can be many. */
export async function run(id: string, project: string): Promise<RunDetail> {
  return json(`${runPath(id)}${queryString({ project, fields: "config" })}`);
}

/** List the attempts of a run, and what later ones hide of the metrics that the script logged. */
export async function attempts(id: string, project: string): Promise<schemas.Attempts> {
  return json(`${runPath(id)}/attempts${queryString({ project, system: "false" })}`);
}

export async function changeRun(id: string, project: string, change: RunChange): Promise<void> {
  await request(`${runPath(id)}${queryString({ project, fields: "" })}`, {
    method: "PATCH",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(change),
  });
}

export async function deleteRun(id: string, project: string): Promise<void> {
  await request(`${runPath(id)}${queryString({ project })}`, { method: "DELETE" });
}

export async function ranks(
  id: string,
  parameters: { project: string; metric: string; x: string; start?: number; stop?: number; max_points?: number } & Variant,
): Promise<schemas.Ranks> {
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
  return (await json<schemas.Events>(`${runPath(id)}/events${queryString(parameters)}`)).events;
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

/** Decode a columns response: u32 length of a JSON header, the header, then float64 arrays, aligned to 8 bytes, little-endian. */
export function decodeColumns(buffer: ArrayBuffer): SeriesPage {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length))) as schemas.QueryColumns;
  if (header.damaged) damageListener(header.damaged);
  const column = ({ offset, length: n }: schemas.ArrayPlace) => new Float64Array(buffer, offset, n);
  const lines = header.series.map(({ gaps, ...line }) => ({
    ...line,
    run: withoutProject(line.run),
    x: column(line.x),
    y: column(line.y),
    ...(gaps ? { gaps: column(gaps) } : {}),
  }));
  return { cursor: header.cursor, reset: header.reset, series: lines };
}

/** Convert a number of the API. NaN and infinities are sent as strings. */
export function toNumber(value: JsonNumber | null | undefined): number {
  return value === null || value === undefined ? Number.NaN : Number(value);
}
