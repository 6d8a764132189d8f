"""Text and charts for a terminal."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensormeter.cli.chart import draw_chart
from tensormeter.cli.terminal import local_time, number, plain


@given(st.text())
def test_plain_text_moves_no_cursor(text):
    shown = plain(text)
    assert len(shown) == len(text)
    assert all(char.isprintable() or char in "\u2028\u2029" or char.isspace() for char in shown)
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in shown)


@pytest.mark.parametrize(
    ("value", "shown"), [(0.1 + 0.2, "0.3"), ("NaN", "NaN"), (2**60, str(2**60)), (1e-20, "1e-20"), (-0.0, "-0")]
)
def test_numbers_are_shown_short(value, shown):
    assert number(value) == shown


def test_a_time_out_of_range_is_shown_in_nanoseconds():
    assert local_time(2**63).startswith("2262")
    assert local_time(10**30) == f"{10**30} ns"


def series(steps, values):
    return {"process": "p", "attributes": {}, "time": list(range(len(steps))), "step": steps, "value": values}


def test_a_large_series_keeps_its_spike():
    n = 300_000
    values = np.zeros(n)
    values[123_456] = 100.0
    chart = draw_chart("m", [series(list(range(n)), values.tolist())], 80, color=False)
    assert "100" in chart
    assert max(map(len, chart.splitlines())) <= 80
    assert len(chart.splitlines()) <= 14


def test_a_chart_without_values_is_a_message():
    assert draw_chart("m", [], 80, color=False) == "m: no finite values to draw"
    assert draw_chart("m", [series([1, None], ["NaN", 1.0])], 80, color=False) == "m: no finite values to draw"


def test_colors_only_when_asked():
    curve = series([2, 1], [1.0, "Infinity"])
    assert "\x1b" not in draw_chart("m", [curve], 80, color=False)
    assert "\x1b" in draw_chart("m", [curve], 80, color=True)


def test_the_line_breaks_where_nothing_was_recorded():
    """Between the points around a gap no row of the chart has a stroke."""
    curve = series([0, 10, 90, 100], [5.0, 5.0, 5.0, 5.0]) | {"time": [0, 2, 4, 6]}
    whole = draw_chart("m", [curve], 80, color=False)
    broken = draw_chart("m", [curve | {"gaps": [3]}], 80, color=False)
    strokes = [sum(not character.isascii() for character in chart) for chart in (whole, broken)]
    assert strokes[1] < strokes[0] - 30
    assert draw_chart("m", [curve | {"gaps": [-1]}], 80, color=False) == whole
