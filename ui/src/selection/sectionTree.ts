// The sections of a tree of metrics. A section reads its charts when it is opened and comes into sight.

import { arrange, button, drawing, h, setText } from "../base/dom";
import * as format from "../base/format";
import type { ChartCardEvents, ChartSource } from "../chart/chartCard";
import type { Chart } from "../chart/variant";
import { ChartDeck } from "./chartDeck";
import type { Folds, MetricNode, MetricTree } from "./metricTree";

const NEAR = "300px";
/** Headings of sections by depth. */
const HEADINGS = ["h2", "h3", "h4", "h5"] as const;
/** Height in pixels of a section before its charts have been read. */
const UNREAD_HEIGHT = 290;

export class SectionTree {
  readonly element = h("div", { class: "sections", on: { keydown: (event) => this.onKey(event) } });
  private readonly deck: ChartDeck;
  private views = new Map<string, SectionView>();
  private readonly below = h("div", { class: "more" });
  private folds: Folds = { open: new Set(), closed: new Set() };
  private drawn = "";
  /** Sections to read when they come into sight. */
  private readonly waiting = new Map<Element, MetricNode>();
  private readonly observer = new IntersectionObserver((entries) => this.onSight(entries), { rootMargin: NEAR });

  constructor(
    private readonly tree: MetricTree,
    private readonly source: (chart: Chart) => ChartSource,
    events: ChartCardEvents,
    private readonly onFold: (folds: Folds) => void,
    showsLegend: boolean,
  ) {
    this.deck = new ChartDeck(this.element, events, showsLegend);
  }

  /** Show the tree with these sections opened and closed. */
  update(folds: Folds): void {
    this.folds = folds;
    const key = JSON.stringify([this.tree.version, [...folds.open], [...folds.closed]]);
    if (key !== this.drawn) this.draw();
    this.drawn = key;
  }

  refresh(): void {
    this.deck.refresh();
  }

  redraw(): void {
    this.deck.redraw();
  }

  close(): void {
    this.observer.disconnect();
    this.deck.close();
  }

  private draw(): void {
    const { root } = this.tree;
    const views = new Map<string, SectionView>();
    this.observer.disconnect();
    this.waiting.clear();
    this.deck.begin();
    const elements = root.sections.map((node) => this.section(node, views));
    this.views = views;
    this.offerMore(root, this.below);
    arrange(this.element, [...elements, ...(root.nextSections === null ? [] : [this.below])]);
    this.deck.end();
  }

  private section(node: MetricNode, views: Map<string, SectionView>): HTMLElement {
    const view = this.views.get(node.key) ?? new SectionView(node, () => this.toggle(view.node));
    views.set(node.key, view);
    const isOpen = this.tree.isOpen(node, this.folds);
    view.drawHeading(node, isOpen, this.tree.root.sections.length > 1 || node.name !== null);
    if (!isOpen) view.drawBody([], true);
    else if (node.state === "read" || node.charts.length > 0) {
      arrange(view.charts, node.charts.map((chart) => this.deck.card(this.source(chart))));
      arrange(view.sections, node.sections.map((section) => this.section(section, views)));
      this.offerMore(node, view.more);
      view.drawBody([
        ...(node.charts.length ? [view.charts] : []),
        ...(node.nextCharts === null ? [] : [view.more]),
        ...(node.sections.length ? [view.sections] : []),
        ...(node.nextCharts === null && node.nextSections !== null ? [view.more] : []),
      ]);
    } else {
      this.offerMore(node, view.more);
      view.more.style.minHeight = node.problem ? "" : `${UNREAD_HEIGHT}px`;
      view.drawBody([view.more]);
    }
    return view.element;
  }

  /** Read the section, or its next page, when the element comes into sight; after an error, when the user asks for it. */
  private offerMore(node: MetricNode, element: HTMLElement): void {
    element.style.minHeight = "";
    if (node.state === "read" && !node.hasMore) return;
    if (node.problem) {
      arrange(element, [h("p", { class: "problem", role: "alert" }, format.message(node.problem), " ", button("Retry", () => this.read(node)))]);
      return;
    }
    arrange(element, [h("p", { class: "muted", role: "status" }, "Loading …")]);
    this.waiting.set(element, node);
    this.observer.observe(element);
  }

  private onSight(entries: IntersectionObserverEntry[]): void {
    for (const { target, isIntersecting } of entries) {
      const node = this.waiting.get(target);
      if (isIntersecting && node) this.read(node);
    }
  }

  private read(node: MetricNode): void {
    void this.tree.read(node, () => this.update(this.folds));
  }

  private toggle(node: MetricNode): void {
    const folds: Folds = { open: new Set(this.folds.open), closed: new Set(this.folds.closed) };
    const isOpen = this.tree.isOpen(node, folds);
    folds[isOpen ? "open" : "closed"].delete(node.key);
    if (this.tree.isOpen(node, folds) === isOpen) folds[isOpen ? "closed" : "open"].add(node.key);
    this.onFold(folds);
  }

  /** Move between headings with the arrow keys; open and close sections with the keys to the right and left. */
  private onKey(event: KeyboardEvent): void {
    const heading = event.target as HTMLElement;
    if (!heading.matches(".fold") || event.ctrlKey || event.metaKey || event.altKey) return;
    const headings = [...this.element.querySelectorAll<HTMLElement>(".fold")];
    const position = headings.indexOf(heading);
    const isOpen = heading.getAttribute("aria-expanded") === "true";
    const parent = heading.closest(".section")?.parentElement?.closest(".section")?.querySelector<HTMLElement>(".fold");
    const moves: Record<string, HTMLElement | null | undefined> = {
      ArrowDown: headings[position + 1],
      ArrowUp: headings[position - 1],
      Home: headings[0],
      End: headings[headings.length - 1],
      ArrowRight: isOpen ? headings[position + 1] : heading,
      ArrowLeft: isOpen ? heading : parent,
    };
    if (!(event.key in moves)) return;
    const target = moves[event.key];
    if (target === heading && event.key.startsWith("Arrow")) heading.click();
    target?.focus();
    event.preventDefault();
    event.stopPropagation();
  }
}

/** The elements of a section. */
class SectionView {
  readonly element = h("section", { class: "section" });
  readonly charts = h("div", { class: "charts" });
  readonly sections = h("div", { class: "subsections" });
  readonly more = h("div", { class: "more" });
  private readonly toggle: HTMLButtonElement;
  private readonly heading: HTMLElement;
  private readonly label = h("span", {});
  private readonly count = h("span", { class: "muted" });

  constructor(
    public node: MetricNode,
    onToggle: () => void,
  ) {
    this.toggle = button("", onToggle, { class: "fold" });
    this.heading = h(HEADINGS[node.depth - 1] ?? "h6", { title: node.prefix || undefined }, this.toggle);
    this.toggle.append(this.label, this.count);
  }

  drawHeading(node: MetricNode, isOpen: boolean, isVisible: boolean): void {
    this.node = node;
    this.heading.hidden = !isVisible;
    setText(this.label, node.label);
    setText(this.count, node.count.toLocaleString("en"));
    const expanded = String(isOpen);
    if (this.toggle.getAttribute("aria-expanded") === expanded) return;
    this.toggle.setAttribute("aria-expanded", expanded);
    this.toggle.querySelector("svg")?.remove();
    this.toggle.prepend(drawing(isOpen ? "down" : "right"));
  }

  /** Show these elements below the heading. `clears` frees the charts. */
  drawBody(body: HTMLElement[], clears = false): void {
    arrange(this.element, [this.heading, ...body]);
    if (clears) for (const element of [this.charts, this.sections]) arrange(element, []);
  }
}
