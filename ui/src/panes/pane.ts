// What a workspace asks of a pane: charts, the system, media, …

import type { Update } from "../data/live";

export interface Pane {
  readonly element: HTMLElement;
  apply: (params: URLSearchParams) => void;
  onUpdate?: (update: Update) => void;
  onKey?: (event: KeyboardEvent) => void;
  /** There are metrics that were not known. */
  onMetrics?: () => void;
  /** What the session knows of its runs was read again. */
  onReload?: () => void;
  close: () => void;
}
