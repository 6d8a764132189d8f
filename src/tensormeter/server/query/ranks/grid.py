"""Statistics over processes that come one after another: too many points to hold at once, and no range known beforehand."""

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Piece", "RankGrid"]

_CELLS: Final = 2_000_000
"""Of all processes together, at most; each is four numbers."""

_FEWEST_COLUMNS: Final = 100


class Piece(NamedTuple):
    """Points of a process, or blocks of points; arrays of shape (n,).

    Attributes:
        x: Finite and ascending; of a block the first.
        low: The lowest value; NaN if there is none, and then the others are not looked at.
        high: The highest.
        mean: Of the values.
        weight: How many there are.
    """

    x: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: NDArray[np.float64]
    weight: NDArray[np.float64]


class RankGrid:
    """Points of processes in equal intervals of x. An interval is as wide as a power of two, and grows with the range of x.

    Attributes:
        columns: Intervals, at most.
        low, high, total, count: float64, shape (processes, columns): the lowest and the highest value, the sum and the number
            of values of a process in an interval; inf, -inf, 0 and 0 where it has none.
        x: float64, shape (columns,): the lowest x of any point in an interval; inf where there is none.
    """

    def __init__(self, processes: int, most: int) -> None:
        """
        Args:
            processes: How many there are.
            most: Intervals that are wanted, at most; with many processes there are fewer.
        """
        self.columns = 2 * max(min(most, _CELLS // max(processes, 1) // 2), min(most, _FEWEST_COLUMNS))
        shape = processes, self.columns
        self.low, self.high = np.full(shape, np.inf), np.full(shape, -np.inf)
        self.total, self.count = np.zeros(shape), np.zeros(shape)
        self.x = np.full(self.columns, np.inf)
        self._exponent: int | None = None  # intervals are 2 ** this wide
        self._first = 0  # the number of the first column's interval: it begins at `_first` times the width

    def add(self, process: int, piece: Piece) -> None:
        """Add what a process has; `process` is its row."""
        x, low, high, mean, weight = piece
        if not len(x):
            return
        self._widen(float(x[0]), float(x[-1]))
        columns, first = np.unique(self._intervals(x) - self._first, return_index=True)
        self.x[columns] = np.minimum(self.x[columns], x[first])
        missing = np.isnan(low)
        if missing.any():
            low, high = np.where(missing, np.inf, low), np.where(missing, -np.inf, high)
            mean, weight = np.where(missing, 0.0, mean), np.where(missing, 0.0, weight)
        with np.errstate(invalid="ignore"):  # infinities of both signs
            self.low[process, columns] = np.minimum(self.low[process, columns], np.minimum.reduceat(low, first))
            self.high[process, columns] = np.maximum(self.high[process, columns], np.maximum.reduceat(high, first))
            self.total[process, columns] += np.add.reduceat(mean * weight, first)
            self.count[process, columns] += np.add.reduceat(weight, first)

    def _intervals(self, x: NDArray[np.float64]) -> NDArray[np.int64]:
        assert self._exponent is not None
        return np.floor(np.ldexp(x, -self._exponent)).astype(np.int64)

    def _widen(self, first: float, last: float) -> None:
        """Make room for points between two x."""
        if self._exponent is None:
            span = max(last - first, abs(last) * 2.0**-40, 2.0**-40)
            self._exponent = math.ceil(math.log2(span / self.columns))
            self._first = int(self._intervals(np.array([first]))[0])
            low = high = self._first
        else:
            known = np.flatnonzero(np.isfinite(self.x))
            low, high = self._first + int(known[0]), self._first + int(known[-1])
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
        """Let the first column be interval `begin`, after all have become `2 ** wider` times as wide."""
        assert self._exponent is not None
        used = np.flatnonzero(np.isfinite(self.x))
        to = ((self._first + used) >> wider) - begin
        self._exponent += wider
        self._first = begin
        columns, first = np.unique(to, return_index=True)
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
