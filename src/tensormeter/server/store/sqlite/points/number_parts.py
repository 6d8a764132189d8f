"""Number points in memory, as a few arrays for all series of a run instead of objects for each series."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.number_blocks import hash_name
from tensormeter.server.store.models.points import Points
from tensormeter.server.store.rules.totals import Totals

__all__ = ["NumberIndex", "NumberPart", "Owner", "Owners", "RunNumbers", "SortedNumbers"]

_FEW: Final = 8
"""Number of series that are looked for one at a time, before all points are sorted by series."""

_SMALL: Final = 1 << 16
"""Number of stretches up to which parts are merged."""

_BEFORE_FIRST: Final = -1

Owner = tuple[int, str]
"""Row ID of a series' process, and its metric."""

Owners = Callable[[Sequence[int]], Mapping[int, Owner]]
"""Function that returns the owners of series, by row ID of the series."""


@dataclass(frozen=True, slots=True, eq=False)
class NumberPart:
    """Points in order of arrival, as n stretches. A stretch is a sequence of consecutive points of one series.

    Attributes:
        series: int64, shape (n,): row ID of each stretch's series.
        names: uint64, shape (n,): hash of each stretch's metric; see `hash_name`.
        starts: int64, shape (n + 1,): index of each stretch's first point, and the number of points; None if each stretch has one
            point.
        points: All points.
        seqs: Numbers of the journal rows, ascending.
        offsets: int64: index of the first stretch of each journal row.
    """

    series: NDArray[np.int64]
    names: NDArray[np.uint64]
    starts: NDArray[np.int64] | None
    points: Points
    seqs: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        seq: int,
        series: NDArray[np.int64],
        names: NDArray[np.uint64],
        counts: NDArray[np.int64],
        points: Points,
    ) -> "NumberPart":
        """Create a part from the stretches of one journal row."""
        starts = None if len(series) == len(points) else np.concatenate([[0], np.cumsum(counts)])
        return cls(series, names, starts, points, np.array([seq]), np.zeros(1, np.int64))

    @classmethod
    def empty(cls) -> "NumberPart":
        """Return a part without stretches."""
        none = np.empty(0, np.int64)
        return cls(none, none.view(np.uint64), None, Points.empty(), none, none)

    @classmethod
    def concat(cls, parts: "Sequence[NumberPart]") -> "NumberPart":
        """Return the stretches of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        sizes = np.cumsum([0, *(len(part.series) for part in parts)])
        points = np.cumsum([0, *(len(part.points) for part in parts)])
        starts = None
        if any(part.starts is not None for part in parts):
            firsts = [part.firsts + offset for part, offset in zip(parts, points.tolist(), strict=False)]
            starts = np.concatenate([*firsts, points[-1:]])
        return cls(
            np.concatenate([part.series for part in parts]),
            np.concatenate([part.names for part in parts]),
            starts,
            Points.concat([part.points for part in parts]),
            np.concatenate([part.seqs for part in parts]),
            np.concatenate([part.offsets + size for part, size in zip(parts, sizes.tolist(), strict=False)]),
        )

    @property
    def firsts(self) -> NDArray[np.int64]:
        """Index of each stretch's first point."""
        return np.arange(len(self.series)) if self.starts is None else self.starts[:-1]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of points of each stretch."""
        return np.ones(len(self.series), np.int64) if self.starts is None else np.diff(self.starts)

    def after(self, seq: int) -> "NumberPart | None":
        """Return the stretches from journal rows after number `seq`, or None if there are none."""
        row = int(np.searchsorted(self.seqs, seq, side="right"))
        if row == 0:
            return self
        if row == len(self.seqs):
            return None
        first = int(self.offsets[row])
        point = first if self.starts is None else int(self.starts[first])
        return NumberPart(
            self.series[first:],
            self.names[first:],
            None if self.starts is None else self.starts[first:] - point,
            self.points[point:],
            self.seqs[row:],
            self.offsets[row:] - first,
        )

    def upto(self, seq: int) -> "NumberPart | None":
        """Return the stretches from journal rows up to number `seq`, or None if there are none."""
        row = int(np.searchsorted(self.seqs, seq, side="right"))
        if row == len(self.seqs):
            return self
        if row == 0:
            return None
        end = int(self.offsets[row])
        point = end if self.starts is None else int(self.starts[end])
        return NumberPart(
            self.series[:end],
            self.names[:end],
            None if self.starts is None else self.starts[: end + 1],
            self.points[:point],
            self.seqs[:row],
            self.offsets[:row],
        )

    def select(self, mask: NDArray[np.bool_]) -> "NumberPart":
        """Return some of the stretches. The numbers of the journal rows are lost."""
        if self.starts is None:
            return NumberPart(
                self.series[mask], self.names[mask], None, self.points[mask], self.seqs[:1], self.offsets[:1]
            )
        counts = np.diff(self.starts)
        points = self.points[np.repeat(mask, counts)]
        starts = np.concatenate([[0], np.cumsum(counts[mask])])
        return NumberPart(self.series[mask], self.names[mask], starts, points, self.seqs[:1], self.offsets[:1])


class RunNumbers:
    """The number points of one run in a memtable. The caller holds the memtable's lock."""

    __slots__ = ("_index", "_parts")

    def __init__(self) -> None:
        self._parts: list[NumberPart] = []
        self._index: NumberIndex | None = None

    @property
    def last(self) -> int:
        """Number of the last journal row."""
        return int(self._parts[-1].seqs[-1])

    def append(self, part: NumberPart) -> None:
        """Add a part. Small parts are merged, so that there are few of them."""
        self._index = None
        merged = [part]
        size = len(part.series)
        while self._parts and len(self._parts[-1].series) <= min(2 * size, _SMALL):
            merged.append(self._parts.pop())
            size += len(merged[-1].series)
        self._parts.append(NumberPart.concat(merged[::-1]))

    def index(self, run: int, owners: Owners, upto: int | None = None) -> "NumberIndex":
        """Return an index of the current points, or of those from journal rows up to number `upto`."""
        if upto is not None and self.last > upto:
            return NumberIndex(run, self.between(_BEFORE_FIRST, upto), owners)
        if self._index is None:
            self._index = NumberIndex(run, tuple(self._parts), owners)
        return self._index

    def between(self, after: int, upto: int | None) -> list[NumberPart]:
        """Return the parts from journal rows after number `after`, up to number `upto` if it is not None."""
        parts = [part for part in (part.after(after) for part in self._parts) if part is not None]
        if upto is None:
            return parts
        return [part for part in (part.upto(upto) for part in parts) if part is not None]


class NumberIndex:
    """Lookup of a run's number points by series. Threads may share it. The points are sorted only if many series are read."""

    def __init__(self, run: int, parts: Sequence[NumberPart], owners: Owners) -> None:
        self.run = run
        self.parts = parts
        self._owners = owners
        self._known_owners: Mapping[int, Owner] = {}
        self._found: dict[int, Points | None] = {}

    def series(self, metrics: Iterable[str] | None = None) -> list[int]:
        """Return the row IDs of all series, or of those that belong to some metrics."""
        if metrics is None:
            rows = self.sorted.series
        else:
            hashes = np.array([hash_name(metric) for metric in metrics], np.uint64)
            found = [part.series[np.isin(part.names, hashes)] for part in self.parts]
            rows = np.unique(np.concatenate([np.empty(0, np.int64), *found]))
        series: list[int] = rows.tolist()
        return series

    def owner(self, series: int) -> Owner:
        """Return the owner of a series."""
        return self._known_owners.get(series) or self._owners((series,))[series]

    def resolve(self, series: Sequence[int]) -> None:
        """Find the owners of many series at once, so that `owner` need not."""
        self._known_owners = self._owners(series)

    def narrow(self, series: Collection[int]) -> "NumberIndex":
        """Return an index of a few series."""
        wanted = np.fromiter(series, np.int64, len(series))
        masks = [np.isin(part.series, wanted) for part in self.parts]
        parts = [part.select(mask) for part, mask in zip(self.parts, masks, strict=True) if mask.any()]
        return NumberIndex(self.run, parts, self._owners)

    def points(self, series: int) -> Points | None:
        """Return the points of a series in order of arrival, or None."""
        if "sorted" not in self.__dict__ and len(self._found) < _FEW:
            if series not in self._found:
                self._found[series] = self._scan(series)
            return self._found[series]
        return self.sorted.points(series)

    def totals(self, series: int) -> Totals | None:
        """Return the totals of a series' points, or None."""
        if "sorted" in self.__dict__:
            return self.sorted.totals(series)
        points = self.points(series)
        return None if points is None else Totals.of(points)

    @cached_property
    def sorted(self) -> "SortedNumbers":
        """All points, sorted by series."""
        return SortedNumbers.sort(NumberPart.concat(self.parts) if self.parts else NumberPart.empty())

    def _scan(self, series: int) -> Points | None:
        found = []
        for part in self.parts:
            mask = part.series == series
            if mask.any():
                found.append(part.select(mask).points)
        return Points.concat(found) if found else None


class SortedNumbers:
    """Points sorted by series and, within a series, by arrival.

    Attributes:
        series: int64, shape (n,): row ID of each series, ascending and distinct.
        starts: int64, shape (n + 1,): index of each series' first point, and the number of points.
        all: All points.
    """

    def __init__(self, series: NDArray[np.int64], starts: NDArray[np.int64], points: Points) -> None:
        """Create it from sorted columns."""
        self.series = series
        self.starts = starts
        self.all = points

    @classmethod
    def sort(cls, part: NumberPart) -> "SortedNumbers":
        """Sort the points of a part."""
        order = np.argsort(part.series, kind="stable")
        ordered = part.series[order]
        if part.starts is None:
            index, counts = order, np.ones(len(order), np.int64)
        else:
            counts = np.diff(part.starts)[order]
            ends = np.cumsum(counts)
            index = np.arange(len(part.points)) + np.repeat(part.starts[:-1][order] - ends + counts, counts)
        edges = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
        starts = np.concatenate([np.concatenate([[0], np.cumsum(counts)])[edges], [len(index)]])
        return cls(ordered[edges], starts, part.points[index])

    @classmethod
    def distinct(cls, parts: "Sequence[SortedNumbers]") -> "SortedNumbers":
        """Return the points of all parts, sorted by series and time. The first of several points with equal times is kept."""
        points = Points.concat([part.all for part in parts])
        series = np.concatenate([part.owners for part in parts])
        order = np.lexsort((points.times, series))
        series, times = series[order], points.times[order]
        changed = np.diff(series, prepend=series[:1] - 1) != 0
        kept = changed | (np.diff(times, prepend=times[:1]) != 0)
        edges = np.flatnonzero(changed[kept])
        starts = np.concatenate([edges, [int(kept.sum())]])
        return cls(series[kept][edges], starts, points[order[kept]])

    @property
    def owners(self) -> NDArray[np.int64]:
        """int64, shape (m,): row ID of each point's series."""
        return np.repeat(self.series, np.diff(self.starts))

    def select(self, points: NDArray[np.bool_]) -> "SortedNumbers":
        """Return some of the points."""
        counts = np.add.reduceat(points, self.starts[:-1], dtype=np.int64) if len(self.series) else self.starts[:0]
        starts = np.concatenate([[0], np.cumsum(counts[counts > 0])])
        return SortedNumbers(self.series[counts > 0], starts, self.all[points])

    def between(self, first: int, last: int) -> "SortedNumbers":
        """Return the series with indexes from `first` to `last`, exclusive."""
        begin, end = self.starts[first], self.starts[last]
        return SortedNumbers(self.series[first:last], self.starts[first : last + 1] - begin, self.all[begin:end])

    def points(self, series: int) -> Points | None:
        """Return the points of a series, or None."""
        index = self._index(series)
        return None if index < 0 else self.all[self.starts[index] : self.starts[index + 1]]

    def totals(self, series: int) -> Totals | None:
        """Return the totals of a series' points, or None."""
        index = self._index(series)
        if index < 0:
            return None
        count, numbers, total, minimum, maximum = (column[index] for column in self.statistics)
        last = self.newest[index]
        return Totals(
            int(count),
            int(numbers),
            float(total),
            float(minimum) if numbers else np.nan,
            float(maximum) if numbers else np.nan,
            int(self.all.times[last]),
            int(self.all.words[last]),
            bool(self.all.integers[last]),
        )

    @cached_property
    def newest(self) -> NDArray[np.int64]:
        """int64, shape (n,): index of each series' first point with its latest time."""
        starts, counts = self.starts[:-1], np.diff(self.starts)
        if len(self.series) == len(self.all):
            return starts
        latest = np.repeat(np.maximum.reduceat(self.all.times, starts), counts)
        candidates = np.where(self.all.times == latest, np.arange(len(self.all)), len(self.all))
        return np.minimum.reduceat(candidates, starts)

    @cached_property
    def statistics(
        self,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Number of points, number of points that are not NaN, and their sum, minimum and maximum, by series.

        If all points of a series are NaN, its minimum is infinite and its maximum negative infinite.
        """
        starts = self.starts[:-1]
        floats = self.all.floats()
        valid = ~np.isnan(floats)
        with np.errstate(all="ignore"):
            return (
                np.diff(self.starts),
                np.add.reduceat(valid, starts, dtype=np.int64),
                np.add.reduceat(np.where(valid, floats, 0.0), starts),
                np.minimum.reduceat(np.where(valid, floats, np.inf), starts),
                np.maximum.reduceat(np.where(valid, floats, -np.inf), starts),
            )

    def _index(self, series: int) -> int:
        index = int(np.searchsorted(self.series, series))
        return index if index < len(self.series) and self.series[index] == series else -1
