// Interface between the shell and its pages.

export interface PageContext {
  /** Set the title of the window and the breadcrumb. */
  title: (...parts: string[]) => void;
  /** Create an element that explains an error and offers a retry. */
  onError: (error: unknown, retry: () => void) => HTMLElement;
}

export interface Page {
  readonly element: HTMLElement;
  /** Show the state in the address. Called at the start and after each change of the parameters. */
  apply: (params: URLSearchParams) => void;
  close: () => void;
  onKey?: (event: KeyboardEvent) => void;
}
