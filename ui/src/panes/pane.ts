// Interface between a workspace and its panes.

import type { Update } from "../data/live";

export interface Pane {
  readonly element: HTMLElement;
  apply: (params: URLSearchParams) => void;
  onUpdate?: (update: Update) => void;
  /** Called when updates begin to arrive. Data that was read before may lack what has arrived since. */
  onStart?: () => void;
  onKey?: (event: KeyboardEvent) => void;
  /** Called when new metrics were detected. */
  onMetrics?: () => void;
  /** Called after the runs were reloaded. */
  onReload?: () => void;
  close: () => void;
}
