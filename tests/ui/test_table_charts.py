"""Tests of charts of tables: what is drawn, the switch to the rows, steps, tooltips, and charts that other senders send."""

import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import expect
from sample_charts import ANIMALS, LONG, charts, send_charts
from sample_runs import Sender

MEDIA = "#/p/charts/runs/charts/media"


@pytest.fixture(scope="module")
def charted(site: Any) -> Any:
    send_charts(site.post)
    return site


@pytest.fixture
def page(charted: Any, tab: Any) -> Any:
    page = tab.go(MEDIA)
    expect(page.locator("svg[role=img]")).to_have_count(len(charts(300)))
    return page


def card_of(page: Any, key: str) -> Any:
    return page.locator(f'.card[aria-label="{key}"]')


def test_lines_bars_points_and_bins_are_drawn(page: Any) -> None:
    loss = card_of(page, "curves/loss")
    expect(loss.locator("h4")).to_have_text("Loss by epoch")
    expect(loss.locator("path.line")).to_have_count(3)
    expect(loss.locator(".keys")).to_have_text("trainvalidationtarget")
    # The number that is missing interrupts the line.
    assert loss.locator("path.line").nth(2).get_attribute("d").count("M") == 2
    bars = card_of(page, "bars/accuracy").locator("svg[role=img] rect")
    heights = bars.evaluate_all("(bars) => bars.map((bar) => +bar.getAttribute('height'))")
    before, after = np.array(heights[:4]), np.array(heights[4:])
    assert before / before[0] == pytest.approx(np.array([0.7, 0.62, 0.4, 0.81]) / 0.7, rel=0.01)
    assert (after > before).all()
    errors = card_of(page, "bars/errors")
    widths = errors.locator("svg[role=img] rect").evaluate_all(
        "(bars) => bars.map((bar) => +bar.getAttribute('width'))"
    )
    assert np.array(widths) / widths[0] == pytest.approx(np.array([42, 17, 66, 8, 23, 31]) / 42, rel=0.01)
    expect(errors.locator("svg[role=img] text > title").first).to_have_text(LONG[0])
    lengths = card_of(page, "points/lengths")
    expect(lengths.locator(".keys")).to_have_text("traintest")
    assert lengths.locator("rect.bin").count() % 2 == 0  # both splits have the same bins
    sweep = card_of(page, "points/sweep")
    expect(sweep.locator("path.dots")).to_have_count(3)
    dots = sweep.locator("path.dots").evaluate_all(
        "(paths) => paths.map((path) => path.getAttribute('d').split('M').length - 1)"
    )
    assert sum(dots) == 300
    expect(sweep.locator("svg[role=img]")).to_contain_text("0.0010.010.1")  # the axis is logarithmic


def test_matrices_are_shaded_by_the_share_of_their_rows(page: Any) -> None:
    card = card_of(page, "matrix/animals")
    rows = charts(300)["matrix/animals"]["rows"]
    expect(card.locator("text.cell")).to_have_text([str(count) for _, _, count in rows])
    shades = card.locator("svg[role=img] rect").evaluate_all(
        "(cells) => cells.map((cell) => +cell.getAttribute('fill-opacity'))"
    )
    counts = np.array([count for _, _, count in rows]).reshape(4, 4)
    shares = counts / counts.sum(axis=1, keepdims=True)
    assert np.array(shades).reshape(4, 4) == pytest.approx(0.06 + 0.94 * shares, abs=1e-3)
    tops = card.locator("svg[role=img] rect").evaluate_all("(cells) => cells.map((cell) => +cell.getAttribute('y'))")
    assert tops == sorted(tops)  # the first class is at the top
    many = card_of(page, "matrix/many")
    expect(many.locator("svg[role=img] rect")).to_have_count(24 * 24)
    expect(many.locator("text.cell")).to_have_count(0)  # its cells are too small for numbers


@pytest.mark.parametrize(("key", "word"), [("curves/precision", "AP"), ("curves/roc", "AUC")])
def test_curves_have_their_areas_in_the_legend(page: Any, key: str, word: str) -> None:
    card = card_of(page, key)
    entries = card.locator(".keys li").all_text_contents()
    table = charts(300)[key]
    for name, entry in zip(ANIMALS, entries, strict=True):
        x, y = np.array([row[1:] for row in table["rows"] if row[0] == name]).T
        area = np.sum(np.diff(x, prepend=0) * y) if word == "AP" else np.trapezoid([0, *y, 1], [0, *x, 1])
        assert re.fullmatch(rf"{name} {word} (.*)", entry)[1] == str(round(area, 3))
    expect(card.locator("path.line")).to_have_count(4 + (word == "AUC"))
    expect(card.locator("path[stroke-dasharray]")).to_have_count(int(word == "AUC"))
    ticks = card.locator("svg[role=img] text").all_text_contents()
    assert ticks.count("0") == ticks.count("1") == 2


def test_long_lines_keep_their_peaks(page: Any) -> None:
    card = card_of(page, "curves/long")
    expect(card.locator(".remark")).to_contain_text("of 40k points are drawn, with the highest and lowest ones")
    path = card.locator("path.line").get_attribute("d")
    heights = [float(point.split()[1]) for point in re.split("[ML]", path)[1:]]
    assert len(heights) <= 20_000
    assert sorted(heights)[1] - min(heights) > 100  # the single peak


def test_a_switch_shows_the_rows_and_holds_for_other_steps(page: Any) -> None:
    card = card_of(page, "matrix/animals")
    switch = card.get_by_role("button", name="Table", exact=True)
    expect(switch).to_have_attribute("aria-pressed", "false")
    switch.focus()
    page.keyboard.press("Enter")
    expect(switch).to_have_attribute("aria-pressed", "true")
    expect(switch).to_be_focused()
    expect(card.locator("tbody tr")).to_have_count(16)
    card.get_by_role("slider").fill("0")
    expect(card.locator(".remark")).to_contain_text("step 100")
    first = charts(100)["matrix/animals"]["rows"][0]
    expect(card.locator("tbody tr").first).to_contain_text(str(first[2]))
    page.keyboard.press("Shift+Tab")
    switch.press("Space")
    expect(card.locator("text.cell").first).to_have_text(str(first[2]))
    expect(card.locator("tbody")).to_have_count(0)


def test_the_pointer_shows_values(page: Any) -> None:
    tip = page.locator(".tooltip")
    rows = charts(300)["matrix/animals"]["rows"]
    total = sum(count for actual, _, count in rows if actual == "cat")
    card_of(page, "matrix/animals").locator("svg[role=img] rect").nth(1).hover(force=True)
    expect(tip).to_contain_text(
        re.compile(rf"predicted dog\s*actual cat\s*count {rows[1][2]}\s*{rows[1][2] * 100 / total:.1f}")
    )
    card_of(page, "bars/accuracy").locator("svg[role=img] rect").nth(5).hover(force=True)
    expect(tip).to_have_text(re.compile(r"afterclass dogy 0\.88"))
    card_of(page, "points/lengths").locator("rect.bin").nth(2).hover(force=True)
    expect(tip).to_contain_text(re.compile(r"tokens \d+ to \d+count \d+"))
    card_of(page, "curves/loss").locator("h4").hover()
    expect(tip).to_be_hidden()


def test_the_drawing_has_a_text_alternative(page: Any) -> None:
    expected = (
        ("curves/loss", r"Loss by epoch, line chart\. 3 series: train, validation, target; epoch from 1 to 60"),
        ("curves/long", r"curves/long, line chart\. value; sample from 0 to 39999; value from .* to 900"),
        ("matrix/animals", r"Confusion on the validation set, confusion matrix\. count; predicted; actual"),
        ("curves/roc", r"ROC, ROC curve\. 4 series: cat · AUC 0\.\d+, "),
    )
    for key, words in expected:
        expect(card_of(page, key).get_by_role("img")).to_have_attribute("aria-label", re.compile(words))


def test_charts_fit_a_phone_and_stay_legible(charted: Any, open_tab: Callable[..., Any]) -> None:
    page = open_tab(charted.url, viewport={"width": 375, "height": 740}, has_touch=True).go(MEDIA)
    expect(page.locator("svg[role=img]")).to_have_count(len(charts(300)))
    page.wait_for_function(
        "() => [...document.querySelectorAll('.plotly > svg')].every((e) => +e.getAttribute('viewBox').split(' ')[2] < 375)"
    )
    measured = page.locator(".plotly > svg").evaluate_all(
        "(all) => all.map((e) => [e.getBoundingClientRect().width / e.getAttribute('viewBox').split(' ')[2], e.getBoundingClientRect().right])"
    )
    for scale, right in measured:
        assert scale == pytest.approx(1, abs=0.02)  # letters have the size that the style states
        assert right <= 375
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 375
    page.set_viewport_size({"width": 700, "height": 740})
    page.wait_for_function(
        "() => [...document.querySelectorAll('.plotly > svg')].every((e) => +e.getAttribute('viewBox').split(' ')[2] > 500)"
    )


def test_tables_of_other_senders_show_at_least_their_rows(tab: Any, site: Any) -> None:
    sender = Sender(site.post, "foreign", "foreign", "foreign", tensormeter__rank=0)
    now = time.time_ns()
    sender.event("run.start", now - 9, {"config": {}})
    markup = "<b>x</b><script>document.title = 'hacked'</script>"
    bodies: dict[str, Any] = {
        "no kind": {"columns": ["a"], "rows": [[1]], "chart": {"kind": "constructor", "x": "a", "y": "a"}},
        "no column": {"columns": ["a"], "rows": [[1]], "chart": {"kind": "line", "x": "a", "y": "b"}},
        "no chart": {"columns": ["a"], "rows": [[1]], "chart": [[["x"]]]},
        "no rows": {"columns": ["a", "b"], "rows": [], "chart": {"kind": "scatter", "x": "a", "y": ["b"]}},
        "odd rows": {
            "columns": ["a", "b", markup],
            "rows": [[1, 2], ["NaN", {"x": 1}], 5, [], [True, None, markup], [3, -1, markup]],
            "chart": {"kind": "line", "x": "a", "y": ["b"], "series": markup, "title": markup, "color": 5},
        },
        "odd histogram": {"columns": ["a"], "rows": [[7], [7]], "chart": {"kind": "histogram", "x": "a"}},
        "empty matrix": {"columns": ["a", "b"], "rows": [[None, 1]], "chart": {"kind": "confusion_matrix", "x": "a", "y": "b"}},
        "unnamed class": {"columns": ["a", "b"], "rows": [["", ""], [None, ""]], "chart": {"kind": "confusion_matrix", "x": "a", "y": "b"}},
        "odd curve": {"columns": ["a", "b"], "rows": [["x", 1], [None, 0]], "chart": {"kind": "roc_curve", "x": "a", "y": "b"}},
        "one bar": {"columns": ["a", "b"], "rows": [["x", 5e9], ["y", "NaN"]], "chart": {"kind": "bar", "x": "a", "y": "b"}},
        "long names": {
            "columns": ["a", "b"],
            "rows": [[f"category number {number}", number] for number in range(100)],
            "chart": {"kind": "bar", "x": "a", "y": "b"},
        },
        "alone": {"columns": ["a", "b"], "rows": [["x", 1]], "chart": {"kind": "bar", "x": "a", "y": "b"}},
        "percent": {"columns": ["a", "b"], "rows": [[0, 0], [50, 75], [100, 100]], "chart": {"kind": "roc_curve", "x": "a", "y": "b"}},
    }  # fmt: skip
    for number, (key, body) in enumerate(bodies.items()):
        sender.event("table", now + number, body, tensormeter__key=key)
    page = tab.go("#/p/foreign/runs/foreign/media")
    for key in ("no kind", "no column", "no chart"):
        expect(card_of(page, key).locator("tbody td")).to_have_text("1")
        expect(card_of(page, key).get_by_role("button", name="Table", exact=True)).to_be_hidden()
    expect(card_of(page, "no rows")).to_contain_text("This chart has no values.")
    odd = card_of(page, "odd rows")
    expect(odd.locator("h4")).to_have_text(markup)
    expect(odd.locator(".keys li")).to_have_text(["none", markup])
    expect(card_of(page, "odd histogram").locator("rect.bin")).not_to_have_count(0)
    expect(card_of(page, "unnamed class").locator("text.cell")).to_have_text("1")
    expect(card_of(page, "percent").locator(".keys")).to_have_text("b AUC 0.625")
    expect(card_of(page, "one bar")).to_contain_text("Not drawn: 1 NaN or infinite value")
    expect(card_of(page, "one bar").locator("svg text").filter(has_text="5e9")).to_have_count(1)
    for key, mark in (("alone", "svg[role=img] rect"), ("odd histogram", "rect.bin")):
        assert card_of(page, key).locator(mark).evaluate("(bar) => +bar.getAttribute('width')") > 50
    labels = (
        card_of(page, "long names")
        .locator("svg text > title")
        .evaluate_all("(titles) => titles.map((title) => title.parentNode.firstChild.textContent)")
    )
    assert len(labels) == len(set(labels)) > 20
    for key in ("no rows", "odd rows", "odd histogram", "empty matrix", "odd curve", "one bar", "alone"):
        card_of(page, key).get_by_role("button", name="Table", exact=True).click()
        expect(card_of(page, key).locator("tbody tr")).to_have_count(
            sum(isinstance(row, list) for row in bodies[key]["rows"])
        )
    expect(card_of(page, "alone").get_by_text("1 row", exact=True)).to_be_visible()
    assert page.title() != "hacked"
