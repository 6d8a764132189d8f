"""Heads: the newest points of each series, in memory, until they are folded into chunks.

Everything in a head is also in the journal, so a head can be lost at any time.
"""

import threading
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from tensormeter.server.store.points import Points

__all__ = ["HeadView", "Heads", "Layer", "newest"]

Newest = tuple[int, int, bool]
"""A point in scalars: (time, word, whether the word is an integer)."""


def newest(points: Points) -> Newest:
    """The point with the latest time; of several, the first. `points` must not be empty."""
    index = int(points.times.argmax())
    return int(points.times[index]), int(points.words[index]), bool(points.integers[index])


@dataclass(slots=True)
class _Head:
    """Points of one series, in order of arrival."""

    parts: list[Points]
    n: int
    newest: Newest


@dataclass(slots=True)
class _Table:
    """Heads by run and series, and the last journal row that went into them."""

    runs: dict[int, dict[int, _Head]] = field(default_factory=dict)
    points: Counter[int] = field(default_factory=Counter)
    upto: int = 0


@dataclass(frozen=True, slots=True)
class HeadView:
    """What a head held at one moment."""

    run: int
    parts: tuple[Points, ...]
    n: int
    newest: Newest


@dataclass(frozen=True, slots=True)
class Layer:
    """Heads at one moment.

    Attributes:
        upto: The last journal row that went in. Once no row up to it is left in the journal, all of this is in chunks.
        series: The heads asked for, by series.
        points: Points by run, duplicates included.
    """

    upto: int
    series: Mapping[int, HeadView]
    points: Mapping[int, int]


class Heads:
    """Two tables: the active one, which grows, and at times a frozen one, which is being folded.

    Every method takes one short lock and may be called on any thread, except that `append` and `freeze` must be called
    in the order of the journal, that is, by whoever holds the lock on writing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active = _Table()
        self._frozen: _Table | None = None

    def append(self, seq: int, arrivals: Iterable[tuple[int, int, Points]]) -> None:
        """Add what journal row `seq` holds: (run, series, points), none of them empty."""
        with self._lock:
            table = self._active
            table.upto = seq
            for run, series, points in arrivals:
                table.points[run] += len(points)
                heads = table.runs.setdefault(run, {})
                head = heads.get(series)
                last = newest(points)
                if head is None:
                    heads[series] = _Head([points], len(points), last)
                    continue
                head.parts.append(points)
                head.n += len(points)
                if last[0] > head.newest[0]:
                    head.newest = last

    def freeze(self) -> Layer | None:
        """Everything that is to be folded next, or None if there is nothing. The same again until `discard`."""
        with self._lock:
            if self._frozen is None and self._active.upto:
                self._frozen, self._active = self._active, _Table()
            if self._frozen is None:
                return None
            return _view(self._frozen, self._frozen.runs, None)

    def discard(self) -> None:
        """Forget the frozen table: it is in chunks now."""
        with self._lock:
            self._frozen = None

    def layers(self, run: int | None = None, series: Collection[int] | None = None) -> list[Layer]:
        """What is in memory now, oldest first: the heads of `run` (only `series`, if given), and counts of all runs.

        Take this before the snapshot of the database: what moves to chunks in between is then seen twice, which `upto`
        tells, and never not at all.
        """
        with self._lock:
            return [
                _view(table, () if run is None else (run,), series)
                for table in (self._frozen, self._active)
                if table is not None and table.upto
            ]

    def pending(self) -> int:
        """Points in memory."""
        with self._lock:
            return self._active.points.total() + (self._frozen.points.total() if self._frozen else 0)


def _view(table: _Table, runs: Iterable[int], wanted: Collection[int] | None) -> Layer:
    heads = {
        series: HeadView(run, tuple(head.parts), head.n, head.newest)
        for run in runs
        for series, head in table.runs.get(run, {}).items()
        if wanted is None or series in wanted
    }
    return Layer(table.upto, heads, dict(table.points))
