// The address holds the whole state of the page, so a link shows the same. It follows the `#`, so it never leaves the browser.

export interface Route {
  path: string[];
  params: URLSearchParams;
}

const listeners = new Set<() => void>();

export function current(): Route {
  const [path = "", query = ""] = location.hash.slice(1).split("?", 2);
  return { path: path.split("/").filter(Boolean).map(decode), params: new URLSearchParams(query) };
}

export function address(path: string[], params: Record<string, string> | URLSearchParams = {}): string {
  const query = new URLSearchParams(params).toString();
  return `#/${path.map(encodeURIComponent).join("/")}${query ? `?${query}` : ""}`;
}

export function go(path: string[], params: Record<string, string> | URLSearchParams = {}): void {
  location.hash = address(path, params);
}

/** Change parameters without adding a history entry. An empty value deletes the parameter. */
export function change(parts: Record<string, string | null>): void {
  const { path, params } = current();
  for (const [name, value] of Object.entries(parts)) {
    if (value === null || value === "") params.delete(name);
    else params.set(name, value);
  }
  const next = address(path, params);
  if (next === location.hash) return;
  history.replaceState(null, "", next);
  for (const listener of listeners) listener();
}

export function onChange(listener: () => void): void {
  listeners.add(listener);
  addEventListener("hashchange", listener);
}

/** Read a list from one parameter. Its items may contain any characters. */
export function list(params: URLSearchParams, name: string): string[] {
  const text = params.get(name);
  return text ? text.split(",").map(decode) : [];
}

export function join(items: Iterable<string>): string {
  return [...items].map((item) => item.replace(/[%,]/g, encodeURIComponent)).join(",");
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
