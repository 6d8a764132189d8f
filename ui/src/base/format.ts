// Formats numbers, times and other values for people.

const SI = ["", "k", "M", "G", "T", "P", "E"];

/** Format a measured value with four significant digits, in scientific notation if that is shorter. Integers keep all digits. */
export function number(value: number): string {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e12) return String(value).replace("-", "−");
  if (size >= 1e7 || size < 1e-3) return value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e").replaceAll("-", "−");
  return String(Number(value.toPrecision(4))).replace("-", "−");
}

/** Format a count with an SI prefix: 1.2k, 3.4M. */
export function count(value: number): string {
  let scale = 0;
  while (Math.abs(value) >= 999.5 && scale < SI.length - 1) {
    value /= 1000;
    scale += 1;
  }
  return `${scale === 0 ? value : Number(value.toPrecision(3))}${SI[scale]}`;
}

/** Format a count in full, with its noun in the singular or plural. */
export const counted = (value: number, noun: string): string => `${value.toLocaleString("en")} ${noun}${value === 1 ? "" : "s"}`;

/** Format bytes in binary units. */
export function bytes(value: number): string {
  let scale = 0;
  while (Math.abs(value) >= 1024 && scale < SI.length - 1) {
    value /= 1024;
    scale += 1;
  }
  return `${Number(value.toPrecision(3))} ${scale === 0 ? "B" : `${(SI[scale] ?? "").toUpperCase()}iB`}`;
}

/** Unit of fractions from 0 to 1 that are shown as percentages. It is not a UCUM unit. */
export const SHARE = "share";

/** Format a value with its UCUM unit. */
export function withUnit(value: number, unit: string): string {
  if (unit === "By") return bytes(value);
  if (unit === "1" || unit === "") return number(value);
  if (unit === SHARE) return `${number(Number((value * 100).toPrecision(4)))} %`;
  if (unit === "s") return seconds(value);
  return `${number(value)} ${unit.replace(/[{}]/g, "")}`;
}

function seconds(value: number): string {
  const size = Math.abs(value);
  if (!Number.isFinite(value) || value === 0) return number(value);
  if (size < 1e-6) return `${number(value * 1e9)} ns`;
  if (size < 1e-3) return `${number(value * 1e6)} µs`;
  if (size < 1) return `${number(value * 1e3)} ms`;
  return size < 120 ? `${number(value)} s` : duration(value);
}

/** Format seconds with the two largest units: 3d 4h, 2h 5m, 4m 10s. */
export function duration(total: number): string {
  if (!Number.isFinite(total) || total < 0) return "–";
  const units: [number, string][] = [
    [86400, "d"],
    [3600, "h"],
    [60, "m"],
    [1, "s"],
  ];
  for (const [position, [size, name]] of units.entries()) {
    if (total < size && size > 1) continue;
    const next = units[position + 1];
    const rest = next ? Math.floor((total % size) / next[0]) : 0;
    const first = Math.floor(total / size);
    return next && rest ? `${first}${name} ${rest}${next[1]}` : `${first}${name}`;
  }
  return "0s";
}

/** Convert nanoseconds since the epoch, as the API sends them, to seconds. */
export function epoch(time: string | number | null | undefined): number {
  return time === null || time === undefined ? Number.NaN : Number(time) / 1e9;
}

/** Format the time since a moment, in the largest unit. */
export function ago(time: number): string {
  const passed = Date.now() / 1000 - time;
  if (!Number.isFinite(passed)) return "–";
  return passed < 2 ? "now" : `${duration(passed).split(" ")[0]} ago`;
}

// Cached, because creating a formatter takes a hundred times as long as using it.
let moments: Intl.DateTimeFormat | null = null;

export function moment(time: number): string {
  moments ??= new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  return Number.isFinite(time) ? moments.format(time * 1000) : "–";
}

/** Format any JSON value in one line. */
export function value(content: unknown): string {
  if (content === null || content === undefined) return "–";
  if (typeof content === "number") return number(content);
  if (typeof content === "string") return content;
  return JSON.stringify(content);
}

/** Format a configuration value, with all digits of a number. */
export function setting(content: unknown): string {
  return typeof content === "number" ? String(content) : value(content);
}

/** The text of an error, which may be any value that was thrown. */
export function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Flatten nested objects to dotted paths: {a: {b: 1}} becomes {"a.b": 1}. */
export function flatten(content: unknown, prefix = "", into: Map<string, unknown> = new Map()): Map<string, unknown> {
  if (content !== null && typeof content === "object" && !Array.isArray(content)) {
    for (const [key, inner] of Object.entries(content)) flatten(inner, prefix ? `${prefix}.${key}` : key, into);
  } else if (prefix) into.set(prefix, content);
  return into;
}
