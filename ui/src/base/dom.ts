// Builds DOM elements. Data reaches the page as text nodes and attribute values only; markup is never built from strings,
// and the server's content policy (Trusted Types) makes the browser refuse it.

export type Child = Node | string | number | null | undefined | false;

type Handlers = { [K in keyof HTMLElementEventMap]?: (event: HTMLElementEventMap[K]) => void };

export interface Props {
  class?: string;
  title?: string | undefined;
  on?: Handlers;
  /** Attributes: false and undefined omit the attribute, true sets it to the empty string. */
  [attribute: string]: string | number | boolean | undefined | Handlers;
}

export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  props: Props = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === false) continue;
    if (typeof value === "object") listen(element, value);
    else if (name === "value" && "value" in element) (element as HTMLInputElement).value = String(value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

export function append(parent: Node, children: Child[]): void {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    parent.appendChild(typeof child === "object" ? child : document.createTextNode(String(child)));
  }
}

export function fill(parent: Element, ...children: Child[]): void {
  parent.textContent = "";
  append(parent, children);
}

/** Fill an element, unless the content that it shows is the same as before. So menus stay open, and selections and the focus are kept. */
export function fillOnChange(parent: HTMLElement, content: unknown, make: () => Child[]): void {
  const key = JSON.stringify(content);
  if (parent.dataset.key === key) return;
  parent.dataset.key = key;
  fill(parent, ...make());
}

/** Set the text of an element in place. Unchanged text is not written, because a write makes the browser restyle the element. */
export function setText(element: HTMLElement, text: string): void {
  const node = element.firstChild;
  if (node instanceof Text && !node.nextSibling) {
    if (node.data !== text) node.data = text;
  } else if (node || text) element.textContent = text;
}

/** Show these elements in this order. Elements that are present already are kept, with their focus, scroll position and pending clicks. */
export function arrange(parent: Element, elements: Element[]): void {
  const remaining = new Set<Element>(elements);
  for (const child of [...parent.childNodes]) if (!remaining.has(child as Element)) child.remove();
  for (const [position, element] of elements.entries()) {
    const current = parent.childNodes[position];
    if (current !== element) parent.insertBefore(element, current ?? null);
  }
}

/** Set the options of a select, as pairs of value and label. */
export function setOptions(select: HTMLSelectElement, choices: [string, string][]): void {
  fillOnChange(select, choices, () => choices.map(([value, label]) => h("option", { value }, label)));
}

/** Set the value of a field, unless the user is typing in it. */
export function setValue(field: HTMLInputElement | HTMLTextAreaElement, value: string): void {
  if (document.activeElement !== field || field.type === "range") field.value = value;
}

export function svg(tag: string, attributes: Record<string, string | number>, ...children: Node[]): SVGElement {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

function listen(element: HTMLElement, handlers: Handlers): void {
  for (const [type, handler] of Object.entries(handlers)) element.addEventListener(type, handler as EventListener);
}

export function button(label: string, onClick: (event: MouseEvent) => void, props: Props = {}): HTMLButtonElement {
  return h("button", { type: "button", ...props, on: { click: onClick } }, label);
}

/** Create a button with an icon and an accessible name. */
export function iconButton(icon: keyof typeof ICONS, name: string, onClick: (event: MouseEvent) => void): HTMLButtonElement {
  const element = button("", onClick, { class: "icon", title: name, "aria-label": name });
  element.append(drawing(icon));
  return element;
}

export function drawing(icon: keyof typeof ICONS): SVGElement {
  return svg(
    "svg",
    { viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true", class: "drawing" },
    svg("path", { d: ICONS[icon] }),
  );
}

const ICONS = {
  columns: "M2.5 3.5h11v9h-11zM6.5 3.5v9M10 3.5v9",
  down: "M4 6.5l4 4 4-4",
  expand: "M9.5 2.5h4v4M13.5 2.5l-4.5 4.5M6.5 13.5h-4v-4M2.5 13.5l4.5-4.5",
  moon: "M13 9.5A5.5 5.5 0 0 1 6.5 3 5.5 5.5 0 1 0 13 9.5z",
  right: "M6.5 4l4 4-4 4",
  save: "M8 2.5v7M5 7l3 3 3-3M3 13h10",
  up: "M4 9.5l4-4 4 4",
  sun: "M8 5a3 3 0 1 0 0 6 3 3 0 0 0 0-6zM8 1.5v1.5M8 13v1.5M1.5 8H3M13 8h1.5M3.4 3.4l1 1M11.6 11.6l1 1M12.6 3.4l-1 1M4.4 11.6l-1 1",
} as const;
