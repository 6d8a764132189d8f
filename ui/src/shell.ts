// The page: a bar that is always there, and the view that the address names.

import { button, fill, h, iconButton } from "./base/dom";
import * as route from "./base/route";
import * as theme from "./base/theme";
import * as tooltip from "./chart/tooltip";
import { ApiError, onStoreDamage, setToken } from "./data/api";
import type { Page } from "./pages/page";
import { Projects } from "./pages/projects";
import { RunsPage } from "./pages/runs";
import { Workspace } from "./pages/workspace";
import { RunSelection } from "./selection/runSelection";
import { drawBanners } from "./widgets/banner";

const crumbs = h("nav", { class: "crumbs", "aria-label": "Where you are" });
const main = h("main", { id: "main", tabindex: -1 });
const skip = h("a", { class: "skip", href: "#main", on: { click: skipToMain } }, "Skip to the content");
const damageBanners = h("div", { class: "banners trouble" });
const damaged = new Set<string>();
const MAX_LISTED = 3;
const help = h("dialog", { class: "help", "aria-label": "Keys" });

let page: Page | null = null;
let key = "";
let prefetchedSelection: RunSelection | null = null;

/** Show what the address names; a session that was begun for it is gone on with. */
export function start(prefetched: RunSelection | null): void {
  prefetchedSelection = prefetched;
  onStoreDamage(showDamage);
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
  document.body.append(skip, h("header", { class: "bar" }, brand, crumbs, tools), damageBanners, main, help);
  addEventListener("keydown", onKey);
  for (const type of ["pointerdown", "focusin"]) addEventListener(type, ({ target }) => closeMenus(target as Node));
}

/** Say on every view what cannot be shown. */
function showDamage(texts: string[]): void {
  for (const text of texts) damaged.add(text.replace(/^damaged: /, ""));
  const visible = [...damaged].slice(0, MAX_LISTED);
  const more = damaged.size > visible.length ? ` And ${damaged.size - visible.length} more: tensormeter check lists them.` : "";
  drawBanners(damageBanners, [{ kind: "bad", title: "The server's store is damaged.", text: `Not shown: ${visible.join("; ")}.${more}` }]);
}

/** Menus close when somebody turns to something else. Returns the one that was open. */
function closeMenus(target: Node | null): HTMLDetailsElement | undefined {
  const open = [...document.querySelectorAll<HTMLDetailsElement>("details.dropdown[open]")].filter((menu) => !menu.contains(target));
  for (const menu of open) menu.open = false;
  return open[0];
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
  if (page && key === next) {
    page.apply(params);
    return;
  }
  page?.close();
  key = next;
  page = make(path);
  fill(main, page.element);
  drawCrumbs(path);
  page.apply(params);
}

function make(path: string[]): Page {
  const [kind, project, section, ids, tab] = path;
  const context = { title: setTitle, onError };
  if (kind !== "p" || project === undefined) return new Projects(context);
  if (section === "runs" && ids) {
    const selection = prefetchedSelection ?? new RunSelection(project, ids.split(","));
    prefetchedSelection = null;
    return new Workspace(context, selection, tab ?? "charts");
  }
  return new RunsPage(context, project);
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
    setToken(field.value.trim());
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
  } else page?.onKey?.(event);
}

function skipToMain(event: Event): void {
  event.preventDefault();
  main.focus();
}
