// Light and dark: the system's choice until somebody chooses here.

const KEY = "tensormeter.theme";
const listeners = new Set<() => void>();
const dark = matchMedia("(prefers-color-scheme: dark)");

export function isDark(): boolean {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : dark.matches;
}

export function restore(): void {
  const chosen = read();
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  dark.addEventListener("change", tell);
}

export function toggle(): void {
  const next = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem(KEY, next);
  } catch {
    // Storage may be off; then the choice lasts until the page is closed.
  }
  tell();
}

export function onTheme(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

const resolved = new Map<string, string>();

/** A colour token of the style sheet as a colour that a canvas takes. */
export function color(token: string): string {
  let found = resolved.get(token);
  if (found === undefined) {
    const probe = document.createElement("i");
    probe.style.color = `var(--${token})`;
    document.body.append(probe);
    found = getComputedStyle(probe).color;
    probe.remove();
    resolved.set(token, found);
  }
  return found;
}

const SERIES = 10;

/** The colour of the nth line: ten that the style sheet names, then hues that are far apart. */
export function lineColor(index: number): string {
  if (index < SERIES) return color(`series-${index}`);
  return `hsl(${Math.round((index * 137.5) % 360)} ${isDark() ? "70% 68%" : "65% 38%"})`;
}

function tell(): void {
  resolved.clear();
  for (const listener of listeners) listener();
}

function read(): string | null {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}
