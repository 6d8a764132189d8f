// The shell of the page: a bar that is always visible, and the page in the address.

import { button, fill, h, iconButton } from "./base/dom";
import * as format from "./base/format";
import * as route from "./base/route";
import * as theme from "./base/theme";
import * as tooltip from "./base/tooltip";
import { ApiError, onStoreDamage, setToken } from "./data/api";
import type { Page } from "./pages/page";
import { Projects } from "./pages/projects";
import { RunsPage } from "./pages/runs";
import { Workspace } from "./pages/workspace";
import { RunSelection } from "./selection/runSelection";
import { drawBanners } from "./widgets/banner";

const crumbs = h("nav", { class: "crumbs", "aria-label": "Breadcrumb" });
const main = h("main", { id: "main", tabindex: -1 });
const skip = h("a", { class: "skip", href: "#main", on: { click: skipToMain } }, "Skip to content");
const damageBanners = h("div", { class: "banners trouble" });
const damaged = new Set<string>();
const MAX_LISTED = 3;
const help = h("dialog", { class: "help", "aria-label": "Keyboard shortcuts" });

let page: Page | null = null;
let key = "";
let prefetchedSelection: RunSelection | null = null;

/** Show the page in the address, with the data that was prefetched for it. */
export function start(prefetched: RunSelection | null): void {
  prefetchedSelection = prefetched;
  onStoreDamage(showDamage);
  // Render first, so that requests are sent early: reading the browser's storage can take a while.
  route.onChange(render);
  render();
  theme.restore();
  const brand = h("a", { class: "brand", href: "#/", title: "All projects" }, "tensormeter");
  const tools = h(
    "div",
    { class: "tools" },
    button("?", () => help.showModal(), { class: "icon", title: "Keyboard shortcuts", "aria-label": "Keyboard shortcuts" }),
    iconButton(theme.isDark() ? "sun" : "moon", "Switch between light and dark", () => theme.toggle()),
  );
  fill(
    help,
    h("h2", {}, "Keyboard shortcuts"),
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

/** Show a banner on all pages that lists damaged parts of the store. */
function showDamage(texts: string[]): void {
  for (const text of texts) damaged.add(text.replace(/^damaged: /, ""));
  const visible = [...damaged].slice(0, MAX_LISTED);
  const more = damaged.size > visible.length ? ` ${damaged.size - visible.length} more: run tensormeter check on the server to list them.` : "";
  drawBanners(damageBanners, [{ kind: "bad", title: "The server's store is damaged.", text: `Not shown: ${visible.join("; ")}.${more}` }]);
}

/** Close menus that do not contain the target. Returns the menu that was open. */
function closeMenus(target: Node | null): HTMLDetailsElement | undefined {
  const open = [...document.querySelectorAll<HTMLDetailsElement>("details.dropdown[open]")].filter((menu) => !menu.contains(target));
  for (const menu of open) menu.open = false;
  return open[0];
}

const KEYS: [string, string][] = [
  ["/", "focus the search or filter"],
  ["↑ ↓", "move through the runs, or the headings of sections"],
  ["Space", "select a run to compare"],
  ["Enter", "open a run"],
  ["c", "compare the selected runs"],
  ["n #", "edit the notes or tags of a run, if the column is shown"],
  ["Esc", "close, or leave a field"],
  ["← →", "read the values of a chart, with Shift in larger steps; close or open a section"],
  ["+ 0", "zoom in at the cursor, zoom out"],
  ["t", "switch between light and dark"],
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
  page = make(path, params);
  fill(main, page.element);
  drawCrumbs(path);
  page.apply(params);
}

function make(path: string[], params: URLSearchParams): Page {
  const [kind, project, section, ids, tab] = path;
  const context = { title: setTitle, onError };
  if (kind !== "p" || project === undefined) return new Projects(context);
  if (section === "runs" && ids) {
    const search = tab === undefined || tab === "charts" ? (params.get("q") ?? "") : undefined;
    const selection = prefetchedSelection ?? new RunSelection(project, ids.split(","), search);
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

/** Explain an error in place of the page, and offer a retry. */
function onError(error: unknown, retry: () => void): HTMLElement {
  if (error instanceof ApiError && error.status === 401) return askForToken();
  const unreachable = error instanceof ApiError && error.status === 0;
  const missing = error instanceof ApiError && error.status === 404;
  return h(
    "div",
    { class: "state", role: "alert" },
    h("h2", {}, unreachable ? "Server not reachable" : missing ? "Run not found" : "Request failed"),
    h("p", {}, unreachable ? "Check that tensormeter serve is running. Training processes keep their points and send them when the server is back." : format.message(error)),
    h("p", {}, button("Retry", retry), " ", h("a", { href: "#/" }, "All projects")),
  );
}

function askForToken(): HTMLElement {
  const field = h("input", { type: "password", autocomplete: "current-password", "aria-label": "Access token", required: true });
  const submit = (event: Event) => {
    event.preventDefault();
    setToken(field.value.trim());
    key = "";
    render();
  };
  return h(
    "form",
    { class: "state", on: { submit } },
    h("h2", {}, "Access token required"),
    h("p", {}, "Create one with tensormeter token create on the server, or use the TENSORMETER_TOKEN it was started with. The token is kept in this tab only."),
    h("p", {}, field, " ", h("button", { class: "primary" }, "Continue")),
  );
}

function onKey(event: KeyboardEvent): void {
  const target = event.target as HTMLElement;
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName) && (target as HTMLInputElement).type !== "checkbox";
  if (event.key === "Escape") {
    const menu = closeMenus(null);
    menu?.querySelector("summary")?.focus();
    // Keep the dialog that contains the menu open.
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
