"""Heads: the newest points of each series, in memory, until they are folded into chunks.

Everything in a head is also in the journal, so a head can be lost at any time.
"""

import threading
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from tensormeter.server.store.models.points import Column, Newest, Points, newest
from tensormeter.server.store.rules.totals import Totals

__all__ = ["HeadView", "Layer", "Memtable", "Placed"]


@dataclass(frozen=True, slots=True)
class Placed:
    """Points, and the rows of the catalog that they belong to. `points` is not empty."""

    run: int
    process: int
    series: int
    metric: str
    points: Column


class Memo:
    """What a reader has worked out about a head, for the next one: `value`, of the first `parts` of its parts."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: tuple[int, Totals] | None = None  # replaced as a whole, so that threads need no lock


@dataclass(slots=True)
class _Head:
    """Points of one series, in order of arrival; `seqs` are the journal rows that they came in."""

    process: int
    metric: str
    parts: list[Column]
    seqs: list[int]
    n: int
    newest: Newest
    memo: Memo = field(default_factory=Memo)
    view: "HeadView | None" = None  # of what it holds now, if anybody has asked


@dataclass(slots=True)
class _Table:
    """Heads by run and series, and by metric, and the last journal row that went into them."""

    runs: dict[int, dict[int, _Head]] = field(default_factory=dict)
    metrics: dict[str, dict[int, tuple[int, _Head]]] = field(default_factory=dict)
    points: Counter[int] = field(default_factory=Counter)
    upto: int = 0


@dataclass(frozen=True, slots=True)
class HeadView:
    """What a head held at one moment."""

    run: int
    process: int
    metric: str
    parts: tuple[Column, ...]
    n: int
    newest: Newest
    memo: Memo

    def totals(self) -> Totals | None:
        """Of all parts; None if they are no numbers."""
        done, known = self.memo.value or (0, None)
        if done < len(self.parts):
            fresh = [part for part in self.parts[done:] if isinstance(part, Points)]
            if not fresh:
                return None
            added = Totals.of(Points.concat(fresh))
            known = added if known is None else Totals.merge((known, added))
            self.memo.value = len(self.parts), known
        return known


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


class Memtable:
    """Two tables: the active one, which grows, and at times a frozen one, which is being folded.

    What was folded last is kept for those who ask for what has arrived since they last asked.

    Every method takes one short lock and may be called on any thread, except that `append` and `freeze` must be called
    in the order of the journal, that is, by whoever holds the lock on writing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active = _Table()
        self._frozen: _Table | None = None
        self._folded = _Table()
        self._floor = 0
        self._last = 0

    def begin(self, seq: int) -> None:
        """Say that everything up to journal row `seq` is in chunks already. Before anything else."""
        with self._lock:
            self._floor = self._last = seq

    def append(self, seq: int, arrivals: Iterable[Placed]) -> None:
        """Add what journal row `seq` holds."""
        with self._lock:
            table = self._active
            table.upto = self._last = seq
            for placed in arrivals:
                points = placed.points
                table.points[placed.run] += len(points)
                heads = table.runs.setdefault(placed.run, {})
                head = heads.get(placed.series)
                last = newest(points)
                if head is None:
                    head = _Head(placed.process, placed.metric, [points], [seq], len(points), last)
                    heads[placed.series] = head
                    table.metrics.setdefault(placed.metric, {})[placed.series] = placed.run, head
                    continue
                head.parts.append(points)
                head.seqs.append(seq)
                head.n += len(points)
                head.view = None
                if last[0] > head.newest[0]:
                    head.newest = last

    def freeze(self) -> Layer | None:
        """Everything that is to be folded next, or None if there is nothing. The same again until `discard`."""
        with self._lock:
            if self._frozen is None and self._active.upto:
                self._frozen, self._active = self._active, _Table()
            if self._frozen is None:
                return None
            return _view(self._frozen, None, None)

    def discard(self) -> None:
        """Forget the frozen table: it is in chunks now."""
        with self._lock:
            if self._frozen is not None:
                self._floor = max(self._floor, self._folded.upto)
                self._folded, self._frozen = self._frozen, None

    def layers(
        self,
        runs: Collection[int] | None = (),
        series: Collection[int] | None = None,
        metrics: Collection[str] | None = None,
    ) -> list[Layer]:
        """What is in memory now, oldest first: heads of `runs` (None: all), and counts of all runs.

        Only of these `series`, if given; or, of all runs, only of these `metrics`.

        Take this before the snapshot of the database: what moves to chunks in between is then seen twice, which `upto`
        tells, and never not at all.
        """
        with self._lock:
            return [
                _view(table, runs, series) if metrics is None else _view_metrics(table, metrics)
                for table in (self._frozen, self._active)
                if table is not None and table.upto
            ]

    def last(self) -> int:
        """The last journal row that went in."""
        return self._last

    def since(
        self, run: int, after: int, series: Collection[int] | None = None
    ) -> dict[int, tuple[Column, ...]] | None:
        """What arrived for a run in journal rows greater than `after`, by series; None if that is not known any more."""
        with self._lock:
            if not self._floor <= after <= self._last:
                return None
            found: dict[int, tuple[Column, ...]] = {}
            for table in self._tables(after):
                for row, head in table.runs.get(run, {}).items():
                    if head.seqs[-1] > after and (series is None or row in series):
                        new = tuple(part for part, seq in zip(head.parts, head.seqs, strict=True) if seq > after)
                        found[row] = found.get(row, ()) + new
            return found

    def grown(self, after: int, runs: Collection[int] | None = None) -> dict[int, set[str]] | None:
        """Which metrics of which runs have grown since journal row `after`; None if that is not known any more."""
        with self._lock:
            if not self._floor <= after <= self._last:
                return None
            found: dict[int, set[str]] = {}
            for table in self._tables(after):
                for run in table.runs if runs is None else runs:
                    names = {head.metric for head in table.runs.get(run, {}).values() if head.seqs[-1] > after}
                    if names:
                        found.setdefault(run, set()).update(names)
            return found

    def pending(self) -> int:
        """Points in memory that wait to be folded."""
        with self._lock:
            return self._active.points.total() + (self._frozen.points.total() if self._frozen else 0)

    def _tables(self, after: int) -> list[_Table]:
        tables = (self._folded, self._frozen, self._active)
        return [table for table in tables if table is not None and table.upto > after]


def _view(table: _Table, runs: Iterable[int] | None, wanted: Collection[int] | None) -> Layer:
    heads = {
        series: _view_head(run, head)
        for run in (table.runs if runs is None else runs)
        for series, head in table.runs.get(run, {}).items()
        if wanted is None or series in wanted
    }
    return Layer(table.upto, heads, dict(table.points))


def _view_metrics(table: _Table, metrics: Iterable[str]) -> Layer:
    heads = {
        series: _view_head(run, head)
        for metric in metrics
        for series, (run, head) in table.metrics.get(metric, {}).items()
    }
    return Layer(table.upto, heads, dict(table.points))


def _view_head(run: int, head: _Head) -> HeadView:
    if head.view is None:
        head.view = HeadView(run, head.process, head.metric, tuple(head.parts), head.n, head.newest, head.memo)
    return head.view
