"""Tests of accessibility: contrast, names, keyboard, and small screens."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

VIEWS = [
    "",
    "#/p/vision",
    "#/p/vision/runs/vis00",
    "#/p/vision/runs/vis00,vis01",
    "#/p/vision/runs/vis00/system",
    "#/p/vision/runs/vis00/distributions",
    "#/p/vision/runs/vis00/media",
    "#/p/console/runs/ranks/logs?q=loss",
    "#/p/console/runs/broken/overview",
    "#/p/vision/runs/vis03/overview",
    "#/p/vision/runs/vis00,vis01/difference",
]
TEXT = ["ink", "muted", "accent", "good", "bad", "warn", "away"]
GROUNDS = ["bg", "panel", "raised", "hover"]
PAIRS = [
    *((text, ground, 4.5) for text in TEXT for ground in GROUNDS),
    ("on-accent", "accent", 4.5),
    ("accent", "tint", 4.5),
    ("ink", "tint", 4.5),
    *((text, "bad-tint", 4.5) for text in ("ink", "bad")),
    *((text, "warn-tint", 4.5) for text in ("ink", "warn")),
    *((f"series-{index}", "panel", 3.0) for index in range(10)),
    ("edge", "panel", 3.0),
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_enough_contrast(open_tab: Callable[..., Any], site: Any, scheme: str) -> None:
    tab = open_tab(site.url, color_scheme=scheme)
    page = tab.go("")
    expect(page.get_by_role("heading", name="Projects")).to_be_visible()
    names = sorted({name for pair in PAIRS for name in pair[:2]})
    colors = page.evaluate(
        """(names) => names.map((name) => {
            const probe = document.body.appendChild(document.createElement('i'));
            probe.style.color = `var(--${name})`;
            return getComputedStyle(probe).color;
        })""",
        names,
    )
    luminance = dict(zip(names, map(_luminance, colors), strict=True))
    assert (luminance["bg"] < 0.1) == (scheme == "dark")
    poor = {
        (text, ground): round(ratio, 2)
        for text, ground, least in PAIRS
        if (ratio := _contrast(luminance[text], luminance[ground])) < least
    }
    assert poor == {}


def _luminance(color: str) -> float:
    """Relative luminance of an sRGB colour as defined by WCAG 2.2."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(first: float, second: float) -> float:
    return (max(first, second) + 0.05) / (min(first, second) + 0.05)


def settled(page: Page) -> None:
    expect(page.locator("main .state[role=status]")).to_have_count(0)
    expect(page.locator("main *").first).to_be_visible()


@pytest.mark.parametrize("address", VIEWS)
def test_controls_have_accessible_names(tab: Any, address: str) -> None:
    page = tab.go(address)
    settled(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, a, input, select, textarea, summary, canvas[role], img')]
            .filter((element) => element.checkVisibility())
            .filter((element) => !(element.textContent.trim() || element.getAttribute('aria-label') || element.title
                || element.alt || element.labels?.length))
            .map((element) => element.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
    assert page.locator("h1, h2").count() > 0
    assert page.evaluate(
        "() => new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size === document.querySelectorAll('[id]').length"
    )


@pytest.mark.parametrize("address", VIEWS)
def test_phone_layout_does_not_scroll_sideways(open_tab: Callable[..., Any], site: Any, address: str) -> None:
    tab = open_tab(site.url, viewport={"width": 375, "height": 740}, has_touch=True)
    page = tab.go(address)
    settled(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 375
    assert page.evaluate("() => document.querySelector('main').getBoundingClientRect().width") <= 375


def test_figures_fit_a_phone(open_tab: Callable[..., Any], site: Any) -> None:
    page = open_tab(site.url, viewport={"width": 375, "height": 740}, has_touch=True).go("#/p/vision/runs/vis00/media")
    figure = page.locator('.card[aria-label="figure1"]')
    figure.locator("svg[role=img]").wait_for()
    edges = "(card) => [card, ...card.querySelectorAll('.plotly > svg, .plotly > svg rect')].map((e) => e.getBoundingClientRect().right)"
    card, *marks = figure.evaluate(edges)
    assert len(marks) == 9
    assert max(marks) < card


def test_controls_are_reachable_by_keyboard(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00?q=eval")
    tab.card("eval/loss")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "() => document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent.trim()"
            )
        )
    for name in (
        "Skip to content",
        "tensormeter",
        "vision",
        "Switch between light and dark",
        "System",
        "Smoothing",
        "Save eval/loss",
    ):
        assert name in reached
    assert "Show eval/loss full screen" in reached


def test_theme_choice_is_kept(tab: Any) -> None:
    page = tab.go("#/p/vision/runs/vis00")
    card = tab.card("eval/loss")
    light = card.locator("canvas").evaluate("(canvas) => canvas.toDataURL()")
    drawn = card.get_attribute("data-drawn")
    page.keyboard.press("t")
    expect(card).not_to_have_attribute("data-drawn", drawn)
    assert card.locator("canvas").evaluate("(canvas) => canvas.toDataURL()") != light
    page.reload()
    assert page.evaluate("() => document.documentElement.dataset.theme") == "dark"


def test_help_lists_keyboard_shortcuts(tab: Any) -> None:
    page = tab.go("")
    expect(page.get_by_role("heading", name="Projects")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_contain_text("select a run to compare")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
