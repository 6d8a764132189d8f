// The page: a bar that is always there, and the view that the address names.

import { button, fill, h, iconButton } from "./base/dom";
import * as route from "./base/route";
import * as theme from "./base/theme";
import * as tooltip from "./chart/tooltip";
import { ApiError, hearDamage, useToken } from "./data/api";
import type { View } from "./pages/page";
import { Projects } from "./pages/projects";
import { RunsView } from "./pages/runs";
import { Workspace } from "./pages/workspace";
import { Session } from "./selection/runSelection";
import { drawBanners } from "./widgets/banner";

const crumbs = h("nav", { class: "crumbs", "aria-label": "Where you are" });
const main = h("main", { id: "main", tabindex: -1 });
const skip = h("a", { class: "skip", href: "#main", on: { click: skipToMain } }, "Skip to the content");
const trouble = h("div", { class: "banners trouble" });
const damaged = new Set<string>();
const MOST_NAMED = 3;
const help = h("dialog", { class: "help", "aria-label": "Keys" });

let view: View | null = null;
let key = "";
let ahead: Session | null = null;

/** Show what the address names; a session that was begun for it is gone on with. */
export function start(begun: Session | null): void {
  ahead = begun;
  hearDamage(showDamage);
  // What a view asks for goes out before anything else is done: reading what the browser keeps can take a while.
  route.onChange(render);
  render();
  theme.restore();
  const brand = h("a", { class: "brand", href: "#/", title: "All projects" }, "tensormeter");
  const tools = h(
    "div",
    { class: "tools" },
    button("?", () => help.showModal(), { class: "icon", title: "Keys", "aria-label": "Keys" }),
    iconButton(theme.isDark() ? "sun" : "moon", "Light or dark", () => theme.toggle()),
  );
  fill(
    help,
    h("h2", {}, "Keys"),
    h(
      "dl",
      {},
      ...KEYS.flatMap(([keys, meaning]) => [h("dt", {}, h("kbd", {}, keys)), h("dd", {}, meaning)]),
    ),
    button("Close", () => help.close()),
  );
  document.body.append(skip, h("header", { class: "bar" }, brand, crumbs, tools), trouble, main, help);
  addEventListener("keydown", onKey);
  for (const type of ["pointerdown", "focusin"]) addEventListener(type, ({ target }) => closeMenus(target as Node));
}

/** Say on every view what cannot be shown. */
function showDamage(texts: string[]): void {
  for (const text of texts) damaged.add(text.replace(/^damaged: /, ""));
  const shown = [...damaged].slice(0, MOST_NAMED);
  const more = damaged.size > shown.length ? ` And ${damaged.size - shown.length} more: tensormeter check lists them.` : "";
  drawBanners(trouble, [{ kind: "bad", title: "The server's store is damaged.", text: `Not shown: ${shown.join("; ")}.${more}` }]);
}

/** Menus close when somebody turns to something else. Returns the one that was open. */
function closeMenus(turnedTo: Node | null): HTMLDetailsElement | undefined {
  const left = [...document.querySelectorAll<HTMLDetailsElement>("details.dropdown[open]")].filter((menu) => !menu.contains(turnedTo));
  for (const menu of left) menu.open = false;
  return left[0];
}

const KEYS: [string, string][] = [
  ["/", "to the search or filter"],
  ["↑ ↓", "move through the runs"],
  ["Space", "select a run to compare"],
  ["Enter", "open a run"],
  ["c", "compare what is selected"],
  ["n #", "edit the notes or the tags of a run, where they are columns"],
  ["Esc", "close, or leave a field"],
  ["← →", "read the values of a chart, with Shift in leaps"],
  ["+ 0", "zoom in there, zoom out"],
  ["t", "light or dark"],
];

function render(): void {
  const { path, params } = route.current();
  tooltip.hide();
  const next = path.join("\n");
  if (view && key === next) {
    view.apply(params);
    return;
  }
  view?.close();
  key = next;
  view = make(path);
  fill(main, view.element);
  drawCrumbs(path);
  view.apply(params);
}

function make(path: string[]): View {
  const [kind, project, section, ids, tab] = path;
  const context = { title: setTitle, onError };
  if (kind !== "p" || project === undefined) return new Projects(context);
  if (section === "runs" && ids) {
    const session = ahead ?? new Session(project, ids.split(","));
    ahead = null;
    return new Workspace(context, session, tab ?? "charts");
  }
  return new RunsView(context, project);
}

function drawCrumbs(path: string[]): void {
  const [kind, project, , ids] = path;
  const items: Node[] = [];
  if (kind === "p" && project !== undefined) {
    items.push(h("a", { href: route.address(["p", project]), "aria-current": ids ? undefined : "page" }, project));
    if (ids) items.push(h("span", { "aria-current": "page", id: "crumb" }, ids.includes(",") ? `${ids.split(",").length} runs` : ids));
  }
  fill(crumbs, ...items);
}

function setTitle(...parts: string[]): void {
  document.title = [...parts, "tensormeter"].join(" · ");
  const crumb = document.getElementById("crumb");
  if (crumb && parts[0]) crumb.textContent = parts[0];
}

/** What a view could not get, told in its place, with what to do next. */
function onError(error: unknown, retry: () => void): HTMLElement {
  if (error instanceof ApiError && error.status === 401) return askForToken();
  const message = error instanceof Error ? error.message : String(error);
  const unreachable = error instanceof ApiError && error.status === 0;
  const missing = error instanceof ApiError && error.status === 404;
  return h(
    "div",
    { class: "state", role: "alert" },
    h("h2", {}, unreachable ? "The server does not answer" : missing ? "There is no such thing here" : "That did not work"),
    h("p", {}, unreachable ? "Is `tensormeter serve` still running? Nothing is lost: trainers keep their points and send them later." : message),
    h("p", {}, button("Try again", retry), " ", h("a", { href: "#/" }, "All projects")),
  );
}

function askForToken(): HTMLElement {
  const field = h("input", { type: "password", autocomplete: "current-password", "aria-label": "Token", required: true });
  const submit = (event: Event) => {
    event.preventDefault();
    useToken(field.value.trim());
    key = "";
    render();
  };
  return h(
    "form",
    { class: "state", on: { submit } },
    h("h2", {}, "This server wants a token"),
    h("p", {}, "It is kept in this tab only. Who started the server has it, as TENSORMETER_TOKEN."),
    h("p", {}, field, " ", h("button", { class: "primary" }, "Go on")),
  );
}

function onKey(event: KeyboardEvent): void {
  const target = event.target as HTMLElement;
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName) && (target as HTMLInputElement).type !== "checkbox";
  if (event.key === "Escape") {
    const menu = closeMenus(null);
    menu?.querySelector("summary")?.focus();
    // Not the dialog that it is in as well.
    if (menu) event.preventDefault();
    else if (typing) target.blur();
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "?") help.showModal();
  else if (event.key === "t") theme.toggle();
  else if (event.key === "/") {
    document.querySelector<HTMLInputElement>("[data-search]")?.focus();
    event.preventDefault();
  } else view?.onKey?.(event);
}

function skipToMain(event: Event): void {
  event.preventDefault();
  main.focus();
}
