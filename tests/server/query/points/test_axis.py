"""Ranges of the time axis: their bounds in nanoseconds select exactly the points whose x values are in the range."""

from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from tensormeter.server.query.points.axis import NEVER, Axis

NOW = 1_790_000_000_000_000_000

times = st.one_of(st.integers(0, NEVER - 1), st.integers(NOW - 10**6, NOW + 10**6), st.integers(0, 10**12))
starts = st.one_of(st.just(None), st.integers(NOW - 10**10, NOW + 10**10), st.integers(0, NEVER - 1))


@st.composite
def bounds(draw: Any, x: np.ndarray) -> float | None:
    """A bound: none, any number, an x value, or the number next to an x value."""
    value = draw(st.sampled_from(x.tolist()))
    above, below = float(np.nextafter(value, np.inf)), float(np.nextafter(value, -np.inf))
    return draw(st.one_of(st.sampled_from([None, value, above, below]), st.floats(allow_nan=False)))


@given(st.data(), st.lists(times, min_size=1, max_size=30), starts)
def test_time_range_selects_the_points_whose_x_is_inside(data: Any, moments: list[int], started: int | None) -> None:
    axis = Axis.parse("time" if started is None else "relative")
    origin = axis.origin(started or 0)
    column = np.array(sorted(moments), np.int64)
    x = axis.seconds(column, origin)
    start, stop = data.draw(bounds(x)), data.draw(bounds(x))
    first, last = axis.nanoseconds(start, origin), axis.nanoseconds(stop, origin)
    selected = (column >= (0 if first is None else first)) & (column < (NEVER if last is None else last))
    inside = (x >= (-np.inf if start is None else start)) & (x < (np.inf if stop is None else stop))
    assert selected.tolist() == inside.tolist()


@given(st.floats(min_value=2.0**63 / 1e9, exclude_min=True))
@example(float("inf"))
def test_bound_after_the_last_time_selects_nothing(x: float) -> None:
    assert Axis.nanoseconds(x, 0.0) == NEVER


@given(st.floats(max_value=0.0))
def test_bound_before_the_first_time_selects_everything(x: float) -> None:
    assert Axis.nanoseconds(x, 0.0) == 0
