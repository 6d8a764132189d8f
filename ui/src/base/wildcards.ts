// Patterns of shell wildcards, as of Python's fnmatch: `*`, `?` and `[...]`.

import { remember } from "./remember";

const patterns = new Map<string, RegExp>();

export function matchesWildcards(pattern: string, name: string): boolean {
  return pattern === name || (/[*?[]/.test(pattern) && remember(patterns, pattern, () => compile(pattern)).test(name));
}

function compile(pattern: string): RegExp {
  const chunks = [""];
  for (const part of pattern.match(/\[!?\]?[^\]]*\]|[^]/gu) ?? []) {
    if (part === "*") chunks.push("");
    else chunks[chunks.length - 1] += one(part);
  }
  const [first, ...others] = chunks;
  const last = others.pop();
  // A chunk matches where it occurs first. Nothing else is tried, so the time does not grow exponentially with the number of stars.
  const middle = others.map((chunk, index) => `(?=(?<g${index}>[^]*?${chunk}))\\k<g${index}>`);
  try {
    return new RegExp(`^${first}${middle.join("")}${last === undefined ? "" : `[^]*${last}`}$`);
  } catch {
    return /^(?!)$/; // such as a range in reverse order
  }
}

/** The regular expression of a character, `?` or `[...]`. */
function one(part: string): string {
  if (part === "?") return "[^]";
  const set = /^\[(!?)([^]+)\]$/.exec(part);
  return set ? `[${set[1] ? "^" : ""}${(set[2] as string).replace(/[\\\]^[]/g, "\\$&")}]` : part.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");
}
