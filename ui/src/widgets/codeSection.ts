// The code of a run: commit, uncommitted changes, source of the script, and packages. Long parts are built when they are opened.

import { type Child, fill, h } from "../base/dom";
import type { Code } from "../data/provenance";
import { copyMark } from "./copyButton";

const COMMIT_LENGTH = 12;

export function codeSection(code: Code): Child[] {
  const { commit, branch, remote, untracked, script, gpus, python, packages, problem } = code;
  const facts: [string, Child][] = [
    ["commit", commit ? h("span", { class: "commit" }, h("code", { title: commit }, commit.slice(0, COMMIT_LENGTH)), copyMark(commit, "the commit")) : ""],
    ["branch", branch],
    ["remote", remote ? link(remote) : ""],
    ["changes", commit ? changes(code) : ""],
    ["script", script ? h("span", { class: "mono" }, script) : ""],
    ["Python", python],
    ["GPUs", gpus.join(", ")],
  ];
  const shown = facts.filter(([, value]) => value !== "");
  return [
    h("dl", { class: "facts long" }, ...shown.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    problem ? h("p", { class: "muted" }, `Incomplete: ${problem}.`) : null,
    code.diff ? fold("Uncommitted changes", "", () => [listing(diffLines(code.diff), "Uncommitted changes"), code.isDiffCut && cut()]) : null,
    untracked.length ? fold("Untracked files", String(untracked.length), () => [listing([untracked.join("\n")], "Untracked files")]) : null,
    code.source ? fold("Source", script.slice(script.lastIndexOf("/") + 1), () => [listing([code.source], "Source"), code.isSourceCut && cut()]) : null,
    packages.length ? fold("Packages", String(packages.length), () => packageList(packages)) : null,
  ];
}

/** The address of the repository. Only addresses with https become links; others could run scripts or leave the browser. */
function link(remote: string): Child {
  const isWeb = /^https:\/\/[\w.-]+(:\d+)?\/[^\s]*$/.test(remote);
  return isWeb ? h("a", { href: remote, rel: "noreferrer noopener", target: "_blank" }, remote) : remote;
}

function changes({ dirty, diff, isDiffCut }: Code): Child {
  if (dirty === null) return h("span", { class: "muted" }, "unknown");
  if (!dirty) return h("span", { class: "muted" }, "none: the commit is what ran");
  const files = diff.split("\n").filter((line) => line.startsWith("diff --git ")).length;
  const count = files ? ` in ${files}${isDiffCut ? " or more" : ""} ${files === 1 && !isDiffCut ? "file" : "files"}` : "";
  return h("span", { class: "dirty" }, `uncommitted changes${count}`);
}

function fold(title: string, note: string, make: () => Child[]): HTMLElement {
  const content = h("div", { class: "disclosed" });
  const details = h("details", { class: "disclosure" }, h("summary", {}, title, " ", h("span", { class: "muted" }, note)), content);
  details.addEventListener("toggle", () => {
    if (details.open && !content.hasChildNodes()) fill(content, ...make());
  });
  return details;
}

function listing(content: Child[], label: string): HTMLElement {
  return h("pre", { class: "code source", tabindex: 0, role: "region", "aria-label": label }, ...content);
}

function cut(): HTMLElement {
  return h("p", { class: "muted" }, "The rest was too long to be recorded.");
}

const KINDS: Record<string, string> = { "+": "added", "-": "removed", "@": "hunk" };

/** Colour the lines of a diff. Neighbouring lines of one kind share an element. */
function diffLines(diff: string): Child[] {
  const parts: { kind: string; lines: string[] }[] = [];
  for (const line of diff.split("\n")) {
    const kind = /^(diff --git|---|\+\+\+|index) /.test(line) ? "file" : (KINDS[line.charAt(0)] ?? "");
    const last = parts.at(-1);
    if (last?.kind === kind) last.lines.push(line);
    else parts.push({ kind, lines: [line] });
  }
  return parts.map(({ kind, lines }, position) => {
    const words = lines.join("\n") + (position < parts.length - 1 ? "\n" : "");
    return kind ? h("span", { class: kind }, words) : words;
  });
}

function packageList(packages: [string, string][]): Child[] {
  const body = h("tbody");
  const field = h("input", { type: "search", class: "search", placeholder: "Search packages", "aria-label": "Search packages", on: { input: () => draw() } });
  const draw = () => {
    const words = field.value.trim().toLowerCase();
    const matches = packages.filter(([name]) => name.toLowerCase().includes(words));
    fill(body, ...matches.map(([name, version]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", { class: "mono" }, version))));
    if (matches.length === 0) fill(body, h("tr", {}, h("td", { class: "muted" }, "No matching package.")));
  };
  draw();
  return [field, h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Packages" }, h("table", { class: "plain" }, body))];
}
