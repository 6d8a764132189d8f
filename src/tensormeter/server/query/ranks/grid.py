"""A grid of statistics over processes, filled one process at a time if memory cannot hold all points."""

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Aggregates", "RankGrid"]

_CELLS: Final = 2_000_000
"""Maximum number of cells for all processes together. Each cell holds four numbers."""

_FEWEST_COLUMNS: Final = 100


class Aggregates(NamedTuple):
    """Aggregates of a process's points or blocks of points, as arrays of shape (n,).

    Attributes:
        x: X value of each point, or of the first point in each block; finite and ascending.
        low: Lowest value; NaN if there is no value, in which case `high`, `mean` and `weight` are ignored.
        high: Highest value.
        mean: Mean of the values.
        weight: Number of values.
    """

    x: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: NDArray[np.float64]
    weight: NDArray[np.float64]


class RankGrid:
    """Aggregates of processes in equal intervals of x. The width of an interval is a power of two and grows with the range.

    Attributes:
        columns: Maximum number of intervals.
        low, high, total, count: Minimum, maximum, sum and count of each process's values in each interval; inf, -inf, 0
            and 0 if there are none. float64, shape (processes, columns).
        x: Lowest x of the points in each interval; inf if there are none. float64, shape (columns,).
    """

    def __init__(self, processes: int, max_points: int) -> None:
        """Create an empty grid.

        Args:
            processes: Number of processes.
            max_points: Maximum number of intervals in the result. With many processes, there are fewer intervals, to
                save memory.
        """
        self.columns = 2 * max(min(max_points, _CELLS // max(processes, 1) // 2), min(max_points, _FEWEST_COLUMNS))
        shape = processes, self.columns
        self.low, self.high = np.full(shape, np.inf), np.full(shape, -np.inf)
        self.total, self.count = np.zeros(shape), np.zeros(shape)
        self.x = np.full(self.columns, np.inf)
        self._exponent: int | None = None  # the width of an interval is 2 ** exponent
        self._first = 0  # number of the first column's interval, which begins at x = number * width
        # The place of the grid, and the last x with its columns: the ranks of a run log the same steps.
        self._last: tuple[tuple[int | None, int], NDArray[np.float64], NDArray[np.int64], NDArray[np.intp]] | None = (
            None
        )

    def add(self, row: int, aggregates: Aggregates) -> None:
        """Add aggregates of the process in the given row."""
        x, low, high, mean, weight = aggregates
        if not len(x):
            return
        self._widen(float(x[0]), float(x[-1]))
        columns, first = self._columns_of(x)
        self.x[columns] = np.minimum(self.x[columns], x[first])
        missing = np.isnan(low)
        if missing.any():
            low, high = np.where(missing, np.inf, low), np.where(missing, -np.inf, high)
            mean, weight = np.where(missing, 0.0, mean), np.where(missing, 0.0, weight)
        with np.errstate(invalid="ignore"):  # values may include infinities of both signs
            self.low[row, columns] = np.minimum(self.low[row, columns], np.minimum.reduceat(low, first))
            self.high[row, columns] = np.maximum(self.high[row, columns], np.maximum.reduceat(high, first))
            self.total[row, columns] += np.add.reduceat(mean * weight, first)
            self.count[row, columns] += np.add.reduceat(weight, first)

    def _columns_of(self, x: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
        """Return the columns that contain any x, and the index of the first x in each."""
        place = self._exponent, self._first
        if self._last is None or self._last[0] != place or not np.array_equal(self._last[1], x):
            intervals = self._intervals(x) - self._first
            first = np.flatnonzero(np.diff(intervals, prepend=intervals[0] - 1))
            self._last = place, x, intervals[first], first
        return self._last[2:]

    def _intervals(self, x: NDArray[np.float64]) -> NDArray[np.int64]:
        assert self._exponent is not None
        return np.floor(np.ldexp(x, -self._exponent)).astype(np.int64)

    def _widen(self, first: float, last: float) -> None:
        """Widen the grid until it covers first <= x <= last."""
        if self._exponent is None:
            span = max(last - first, abs(last) * 2.0**-40, 2.0**-40)
            self._exponent = math.ceil(math.log2(span / self.columns))
            self._first = int(self._intervals(np.array([first]))[0])
            low = high = self._first
        else:
            begin, end = (math.floor(math.ldexp(x, -self._exponent)) for x in (first, last))
            if begin >= self._first and end < self._first + self.columns:
                return
            used = np.flatnonzero(np.isfinite(self.x))
            low, high = self._first + int(used[0]), self._first + int(used[-1])
        wider = 0
        while True:
            begin, end = (math.floor(math.ldexp(x, -self._exponent - wider)) for x in (first, last))
            begin, end = min(begin, low >> wider), max(end, high >> wider)
            if end - begin < self.columns:
                break
            wider += 1
        if wider or begin < self._first or end >= self._first + self.columns:
            self._move(begin, wider)

    def _move(self, begin: int, wider: int) -> None:
        """Make intervals `2 ** wider` times as wide, and move the interval with number `begin` to the first column."""
        assert self._exponent is not None
        used = np.flatnonzero(np.isfinite(self.x))
        targets = ((self._first + used) >> wider) - begin
        self._exponent += wider
        self._first = begin
        columns, first = np.unique(targets, return_index=True)
        for values, combine, empty in (
            (self.low, np.minimum, np.inf),
            (self.high, np.maximum, -np.inf),
            (self.total, np.add, 0.0),
            (self.count, np.add, 0.0),
            (self.x, np.minimum, np.inf),
        ):
            joined = combine.reduceat(values[..., used], first, axis=-1) if len(used) else values[..., :0]
            values.fill(empty)
            values[..., columns] = joined
