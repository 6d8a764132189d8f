"""Lines: series whose points have positions on the x axis."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store import Points, Series
from tensormeter.server.store.models.points import Column

__all__ = [
    "NO_POSITIONS",
    "Line",
    "LineReading",
    "add_gaps",
    "cut_line",
    "gap_positions",
    "join_lines",
    "line_along",
    "line_of",
    "values_at",
]

NO_POSITIONS: Final[NDArray[np.float64]] = np.empty(0, np.float64)


@dataclass(frozen=True, eq=False)
class Line:
    """A series with the x value of each point.

    Attributes:
        series: Series with n points, in order of x.
        x: X values of the points, float64, shape (n,), ascending.
        attempt: Number of the attempt to which the process of the series belongs.
        gaps: Positions of gaps in the line; see `gap_positions`.
    """

    series: Series
    x: NDArray[np.float64]
    attempt: int = 1
    gaps: NDArray[np.float64] = field(default_factory=lambda: NO_POSITIONS)


class LineReading(NamedTuple):
    """Result of reading lines.

    Attributes:
        lines: Lines with at least one point.
        cursor: Cursor for a later read; see `Reading`.
        complete: Whether all points were read, rather than only those after a cursor.
    """

    lines: Sequence[Line]
    cursor: str
    complete: bool

    @property
    def points(self) -> int:
        """Number of points in all lines."""
        return sum(len(line.x) for line in self.lines)


def line_along(series: Series, x_series: Sequence[Series]) -> Line:
    """Return a line whose x values are another metric's values at the same times. Omit points without an x value.

    Args:
        series: Series with the y values.
        x_series: Series of the x-axis metric from the same process.
    """
    return line_of(series, values_at(x_series, series.points.times))


def values_at(series: Sequence[Series], times: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the first value of any of these series at each time; NaN if there is none. The result has the shape of `times`."""
    x = np.full(len(times), np.nan)
    for candidate in series:
        assert isinstance(candidate.points, Points)
        known = candidate.points.times
        if known is times or np.array_equal(known, times):
            return candidate.points.floats()
        index = np.minimum(np.searchsorted(known, times), len(known) - 1)
        is_match = known[index] == times
        x = np.where(is_match & np.isnan(x), candidate.points.floats()[index], x)
    return x


def line_of(series: Series, x: NDArray[np.float64]) -> Line:
    """Return a line with the x value of each point, which is NaN for points to omit."""
    points: Column = series.points
    has_x = ~np.isnan(x)
    if not has_x.all():
        points, x = points[has_x], x[has_x]
    # Points with equal x stay in time order.
    if np.any(x[1:] < x[:-1]):
        order = np.argsort(x, kind="stable")
        points, x = points[order], x[order]
    return Line(replace(series, points=points), x)


def cut_line(line: Line, start: float | None, stop: float | None) -> Line:
    """Keep only the points with start <= x < stop."""
    first = 0 if start is None else int(np.searchsorted(line.x, start))
    last = len(line.x) if stop is None else int(np.searchsorted(line.x, stop))
    if first == 0 and last == len(line.x):
        return line
    part = slice(first, max(first, last))
    return Line(replace(line.series, points=line.series.points[part]), line.x[part])


def add_gaps(line: Line) -> Line:
    """Return the line, including the positions of the gaps in its series."""
    gaps = line.series.gaps
    return replace(line, gaps=gap_positions(gaps, line.series.points.times, line.x)) if len(gaps) else line


def join_lines(pieces: Sequence[Line]) -> Line:
    """Join the pieces of a line from several attempts. The result has the identity of the last piece."""
    if len(pieces) == 1:
        return pieces[0]
    x = np.concatenate([piece.x for piece in pieces])
    points: Column = type(pieces[0].series.points).concat([piece.series.points for piece in pieces])
    if np.any(x[1:] < x[:-1]):
        order = np.argsort(x, kind="stable")
        x, points = x[order], points[order]
    return Line(replace(pieces[-1].series, points=points), x, gaps=np.concatenate([piece.gaps for piece in pieces]))


def gap_positions(gaps: NDArray[np.int64], times: NDArray[np.int64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the x value of the last point before each gap, in ascending order, omitting gaps before the first point.

    A chart does not connect neighboring points a and b if a.x <= position < b.x. This rule works for any subset of the
    points, so sampling does not move gaps.
    """
    if not len(gaps):
        return NO_POSITIONS
    order = np.argsort(times, kind="stable")
    index = np.searchsorted(times[order], gaps, "right") - 1
    return np.unique(x[order[index[index >= 0]]])
