// What the page asks of a view.

export interface PageContext {
  /** Name the view in the window's title and the bar. */
  title: (...parts: string[]) => void;
  /** An element that tells what went wrong and what to do next. */
  onError: (error: unknown, retry: () => void) => HTMLElement;
}

export interface Page {
  readonly element: HTMLElement;
  /** Show what the address says; called at first and whenever its parameters change. */
  apply: (params: URLSearchParams) => void;
  close: () => void;
  onKey?: (event: KeyboardEvent) => void;
}
