// Table of a run's artifacts, such as checkpoints, with the command that restores each.

import { type Child, h } from "../base/dom";
import * as format from "../base/format";
import type { Artifact } from "../data/provenance";
import { copyMark } from "./copyButton";
import { restoreCommand } from "./restoreCommand";

const MAX_ROWS = 200;
const DIGEST_LENGTH = 12;
/** Time after which a digest is no longer awaited. */
const PENDING_SECONDS = 86_400;

export function artifactTable(artifacts: Artifact[], hostOf: (process: string) => string | null): HTMLElement {
  const rows = artifacts.slice(0, MAX_ROWS).map((artifact) => h("tr", {}, ...cells(artifact, hostOf(artifact.process))));
  const heading = ["name", "step", "size", "restore"].map((name) => h("th", { scope: "col", class: name === "name" ? "" : "end" }, name));
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "Artifacts" },
    h("table", { class: "plain artifacts" }, h("thead", {}, h("tr", {}, ...heading)), h("tbody", {}, ...rows)),
    artifacts.length > MAX_ROWS && h("p", { class: "muted" }, `and ${artifacts.length - MAX_ROWS} older ones`),
  );
}

const isPending = ({ time }: Artifact) => Date.now() / 1000 - time < PENDING_SECONDS;

function cells(artifact: Artifact, host: string | null): Child[] {
  const { name, type, aliases, step, size, files, digest, problem, path, uri } = artifact;
  const isMissing = problem !== "" && !uri && size === null;
  const command = isMissing ? "" : restoreCommand(artifact);
  const short = digest.replace(/^sha256:/, "sha256 ").slice(0, "sha256 ".length + DIGEST_LENGTH);
  const parts = [type !== "model" ? type : "", files !== null && files !== 1 ? `${files.toLocaleString("en")} files` : "", uri ? "" : short || (problem ? `no digest: ${problem}` : isPending(artifact) ? "digest pending" : "no digest: its agent was killed")];
  const remarks = parts.filter(Boolean).join(" · ");
  return [
    h(
      "td",
      {},
      h("div", { class: "name" }, h("strong", {}, name), ...aliases.map((alias) => h("span", { class: "tag" }, alias))),
      h("div", { class: "mono muted", title: path && host ? `on ${host}` : undefined }, path || uri),
      remarks ? h("div", { class: isMissing ? "problem" : "muted", title: digest || undefined }, remarks) : null,
    ),
    h("td", { class: "numeric end" }, step === null ? "–" : step.toLocaleString("en").replaceAll(",", "\u2009")),
    h("td", { class: "numeric end" }, size === null ? "–" : format.bytes(size)),
    h("td", { class: "end" }, command ? copyMark(command, `the command that restores ${name}`) : null),
  ];
}
