// Light and dark theme: the system's setting, unless the user has chosen one here.

const KEY = "tensormeter.theme";
const listeners = new Set<() => void>();
const dark = matchMedia("(prefers-color-scheme: dark)");

export function isDark(): boolean {
  const choice = document.documentElement.dataset.theme;
  return choice ? choice === "dark" : dark.matches;
}

export function restore(): void {
  const choice = readStored();
  if (choice === "light" || choice === "dark") document.documentElement.dataset.theme = choice;
  dark.addEventListener("change", notify);
}

export function toggle(): void {
  const next = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem(KEY, next);
  } catch {
    // Storage may be disabled; then the choice lasts until the page is closed.
  }
  notify();
}

export function onTheme(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

const resolved = new Map<string, string>();

const SERIES = 10;
const CANVAS_TOKENS = ["muted", "grid", "bad", ...Array.from({ length: SERIES }, (_, index) => `series-${index}`)];

/** Resolve a colour token of the style sheet to a colour that canvas accepts. */
export function color(token: string): string {
  // Resolve all tokens together: the browser recomputes styles after each change of the document.
  if (!resolved.has(token)) resolve(CANVAS_TOKENS.includes(token) ? CANVAS_TOKENS : [token]);
  return resolved.get(token) as string;
}

function resolve(tokens: string[]): void {
  const probes = tokens.map((token) => {
    const probe = document.createElement("i");
    probe.style.color = `var(--${token})`;
    return probe;
  });
  document.body.append(...probes);
  for (const [index, probe] of probes.entries()) resolved.set(tokens[index] as string, getComputedStyle(probe).color);
  for (const probe of probes) probe.remove();
}

/** The colour of the nth line: ten named in the style sheet, then generated hues that are far apart. */
export function lineColor(index: number): string {
  if (index < SERIES) return color(`series-${index}`);
  return `hsl(${Math.round((index * 137.5) % 360)} ${isDark() ? "70% 68%" : "65% 38%"})`;
}

function notify(): void {
  resolved.clear();
  for (const listener of listeners) listener();
}

function readStored(): string | null {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}
