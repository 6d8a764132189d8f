// The code and the artifacts of a run, from its events. Any sender may send such events, so every field is checked.

import * as api from "./api";

export interface Code {
  /** ID of the event. */
  event: number;
  commit: string;
  branch: string;
  remote: string;
  dirty: boolean | null;
  diff: string;
  isDiffCut: boolean;
  untracked: string[];
  script: string;
  source: string;
  isSourceCut: boolean;
  packages: [string, string][];
  python: string;
  gpus: string[];
  problem: string;
}

export interface Artifact {
  name: string;
  type: string;
  aliases: string[];
  /** Seconds since the epoch. */
  time: number;
  step: number | null;
  process: string;
  /** Path on the machine of the process; empty for an address. */
  path: string;
  uri: string;
  isFolder: boolean;
  size: number | null;
  files: number | null;
  digest: string;
  /** Reason why there is no digest. */
  problem: string;
}

const MAX_ARTIFACTS = 1000;

type Fields = Record<string, unknown>;

const fields = (value: unknown): Fields => (typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Fields) : {});
const text = (value: unknown): string => (typeof value === "string" ? value : "");
const texts = (value: unknown): string[] => (Array.isArray(value) ? value.map(String) : []);
const number = (value: unknown): number | null => (typeof value === "number" ? value : null);

/** Read the code of the latest attempt, or null if it was not recorded, or if its event is the known one. */
export async function code(run: string, project: string, known: number | null): Promise<Code | null> {
  const query = { project, name: "tensormeter.run.code", limit: 1 };
  // The body is large, so the event is first read without it.
  const [latest] = await api.events(run, { ...query, max_body: 1 });
  if (!latest || latest.id === known) return null;
  const [event] = await api.events(run, query);
  if (!event) return null;
  const body = fields(event.body);
  const git = fields(body.git);
  const source = fields(body.source);
  return {
    event: event.id,
    commit: text(git.commit),
    branch: text(git.branch),
    remote: text(git.remote),
    dirty: typeof git.dirty === "boolean" ? git.dirty : null,
    diff: text(git.diff),
    isDiffCut: git.truncated === true,
    untracked: texts(git.untracked),
    script: text(source.path),
    source: text(source.text),
    isSourceCut: source.truncated === true,
    packages: Object.entries(fields(body.packages)).map(([name, version]): [string, string] => [name, String(version)]),
    python: text(body.python),
    gpus: texts(body.gpus),
    problem: text(body.problem) || text(git.problem),
  };
}

/** Read the artifacts of a run, newest first. A large artifact has two events, the second one with its digest. */
export async function artifacts(run: string, project: string): Promise<Artifact[]> {
  const latest = new Map<string, Artifact>();
  for (const event of await api.events(run, { project, name: "tensormeter.artifact", limit: MAX_ARTIFACTS })) {
    const artifact = artifactOf(event);
    const key = [event.time, event.process, artifact.name].join("\n");
    if (!latest.has(key) || artifact.digest || artifact.problem) latest.set(key, artifact);
  }
  return [...latest.values()];
}

function artifactOf({ time, step, process, body: content }: api.TelemetryEvent): Artifact {
  const body = fields(content);
  return {
    name: text(body.name),
    type: text(body.type),
    aliases: texts(body.aliases),
    time: Number(time) / 1e9,
    step,
    process,
    path: text(body.path),
    uri: text(body.uri),
    isFolder: body.folder === true,
    size: number(body.size),
    files: number(body.files),
    digest: text(body.digest),
    problem: text(body.problem),
  };
}
