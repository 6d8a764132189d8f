// Live updates by server-sent events, read with fetch because EventSource cannot send a token.

import { reference, request } from "./api";
import type { Update } from "./api.types";

export type { Update };

const RETRY_MS = [1000, 2000, 5000, 15000];
/** Time after which a hidden page disconnects, because agents send data more often while a stream is open. */
const HIDDEN_MS = 60_000;

/**
 * Follow runs until the returned function is called. Reconnects when the server returns. `onStart` receives the cursor from
 * which updates follow, once per connection: points read at another cursor may be outdated. A page that has been hidden for a
 * minute disconnects until it is visible again.
 */
export function follow(
  runs: string[],
  project: string,
  onUpdate: (update: Update) => void,
  onState: (connected: boolean) => void,
  onStart: (cursor: string) => void,
): () => void {
  const abort = new AbortController();
  const visibility = new Visibility(abort.signal);
  let cursor = "";
  let failures = 0;

  async function read(): Promise<void> {
    const search = new URLSearchParams({ runs: runs.map((id) => reference(project, id)).join(",") });
    if (cursor) search.set("after", cursor);
    const signal = AbortSignal.any([abort.signal, visibility.untilHidden()]);
    const response = await request(`/stream?${search}`, { signal, headers: { Accept: "text/event-stream" } });
    if (!response.body) return;
    failures = 0;
    onState(true);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let buffer = "";
    let started = false;
    const reportStart = (from: string) => {
      if (!started) onStart(from);
      started = true;
    };
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      buffer += value.replaceAll("\r", "");
      const blocks = buffer.split("\n\n");
      buffer = blocks.pop() ?? "";
      for (const block of blocks) handleBlock(block, reportStart);
    }
  }

  function handleBlock(block: string, reportStart: (from: string) => void): void {
    let type = "message";
    const data: string[] = [];
    for (const line of block.split("\n")) {
      const [field = "", ...rest] = line.split(":");
      const value = rest.join(":").replace(/^ /, "");
      if (field === "event") type = value;
      else if (field === "data") data.push(value);
      else if (field === "id") cursor = value;
    }
    if (type === "cursor") reportStart((cursor = (JSON.parse(data.join("\n")) as { cursor: string }).cursor));
    else if (type === "update") {
      const update = JSON.parse(data.join("\n")) as Update;
      onUpdate({ ...update, run: update.run.slice(update.run.lastIndexOf("/") + 1) });
    }
  }

  void (async () => {
    while (!abort.signal.aborted) {
      try {
        await read();
      } catch {
        // Reported below. The server may be restarting.
      }
      if (abort.signal.aborted) return;
      if (await visibility.returned()) continue;
      onState(false);
      await pause(RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)] ?? 15000, abort.signal);
    }
  })();
  return () => abort.abort();
}

function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

/** Visibility of the page, observed until a signal aborts. */
class Visibility {
  private connection = new AbortController();
  private timer = 0;
  private resume: () => void = () => {};

  constructor(private readonly end: AbortSignal) {
    const onChange = () => this.onChange();
    document.addEventListener("visibilitychange", onChange);
    end.addEventListener("abort", () => {
      document.removeEventListener("visibilitychange", onChange);
      clearTimeout(this.timer);
      this.resume();
    });
    this.onChange();
  }

  /** Return a signal that aborts when the page has been hidden for a minute. */
  untilHidden(): AbortSignal {
    return this.connection.signal;
  }

  /** Wait until a page that was disconnected is visible again. Returns false if it was not disconnected. */
  async returned(): Promise<boolean> {
    if (!this.connection.signal.aborted) return false;
    if (document.hidden && !this.end.aborted) await new Promise<void>((resolve) => (this.resume = resolve));
    this.connection = new AbortController();
    this.onChange();
    return true;
  }

  private onChange(): void {
    clearTimeout(this.timer);
    if (document.hidden) this.timer = window.setTimeout(() => this.connection.abort(), HIDDEN_MS);
    else this.resume();
  }
}
