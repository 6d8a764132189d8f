"""Heads: the newest points of each series, in memory, until they are folded into chunks.

Everything in a head is also in the journal, so a head can be lost at any time.
"""

import threading
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from tensormeter.server.store.models.points import Column, Newest, Points, newest
from tensormeter.server.store.rules.totals import Totals

__all__ = ["BufferSnapshot", "Memtable", "MemtableSnapshot", "SeriesPoints"]


@dataclass(frozen=True, slots=True)
class SeriesPoints:
    """Points, and the rows of the catalog that they belong to. `points` is not empty."""

    run: int
    process: int
    series: int
    metric: str
    points: Column


class TotalsCache:
    """What a reader has worked out about a head, for the next one: `value`, of the first `parts` of its parts."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: tuple[int, Totals] | None = None  # replaced as a whole, so that threads need no lock


@dataclass(slots=True)
class _SeriesBuffer:
    """Points of one series, in order of arrival; `seqs` are the journal rows that they came in."""

    process: int
    metric: str
    parts: list[Column]
    seqs: list[int]
    n: int
    newest: Newest
    totals_cache: TotalsCache = field(default_factory=TotalsCache)
    snapshot: "BufferSnapshot | None" = None  # of what it holds now, if anybody has asked


@dataclass(slots=True)
class _Table:
    """Heads by run and series, and by metric, and the last journal row that went into them."""

    runs: dict[int, dict[int, _SeriesBuffer]] = field(default_factory=dict)
    metrics: dict[str, dict[int, tuple[int, _SeriesBuffer]]] = field(default_factory=dict)
    points: Counter[int] = field(default_factory=Counter)
    upto: int = 0


@dataclass(frozen=True, slots=True)
class BufferSnapshot:
    """What a head held at one moment."""

    run: int
    process: int
    metric: str
    parts: tuple[Column, ...]
    n: int
    newest: Newest
    totals_cache: TotalsCache

    def totals(self) -> Totals | None:
        """Of all parts; None if they are no numbers."""
        done, known = self.totals_cache.value or (0, None)
        if done < len(self.parts):
            fresh = [part for part in self.parts[done:] if isinstance(part, Points)]
            if not fresh:
                return None
            added = Totals.of(Points.concat(fresh))
            known = added if known is None else Totals.merge((known, added))
            self.totals_cache.value = len(self.parts), known
        return known


@dataclass(frozen=True, slots=True)
class MemtableSnapshot:
    """Heads at one moment.

    Attributes:
        upto: The last journal row that went in. Once no row up to it is left in the journal, all of this is in chunks.
        series: The heads asked for, by series.
        points: Points by run, duplicates included.
    """

    upto: int
    series: Mapping[int, BufferSnapshot]
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
        self._flushed = _Table()
        self._floor = 0
        self._last = 0

    def begin(self, seq: int) -> None:
        """Say that everything up to journal row `seq` is in chunks already. Before anything else."""
        with self._lock:
            self._floor = self._last = seq

    def append(self, seq: int, arrivals: Iterable[SeriesPoints]) -> None:
        """Add what journal row `seq` holds."""
        with self._lock:
            table = self._active
            table.upto = self._last = seq
            for located in arrivals:
                points = located.points
                table.points[located.run] += len(points)
                buffers = table.runs.setdefault(located.run, {})
                buffer = buffers.get(located.series)
                last = newest(points)
                if buffer is None:
                    buffer = _SeriesBuffer(located.process, located.metric, [points], [seq], len(points), last)
                    buffers[located.series] = buffer
                    table.metrics.setdefault(located.metric, {})[located.series] = located.run, buffer
                    continue
                buffer.parts.append(points)
                buffer.seqs.append(seq)
                buffer.n += len(points)
                buffer.snapshot = None
                if last[0] > buffer.newest[0]:
                    buffer.newest = last

    def freeze(self) -> MemtableSnapshot | None:
        """Everything that is to be folded next, or None if there is nothing. The same again until `discard`."""
        with self._lock:
            if self._frozen is None and self._active.upto:
                self._frozen, self._active = self._active, _Table()
            if self._frozen is None:
                return None
            return _snapshot_of_runs(self._frozen, None, None)

    def discard(self) -> None:
        """Forget the frozen table: it is in chunks now."""
        with self._lock:
            if self._frozen is not None:
                self._floor = max(self._floor, self._flushed.upto)
                self._flushed, self._frozen = self._frozen, None

    def snapshots(
        self,
        runs: Collection[int] | None = (),
        series: Collection[int] | None = None,
        metrics: Collection[str] | None = None,
    ) -> list[MemtableSnapshot]:
        """What is in memory now, oldest first: heads of `runs` (None: all), and counts of all runs.

        Only of these `series`, if given; or, of all runs, only of these `metrics`.

        Take this before the snapshot of the database: what moves to chunks in between is then seen twice, which `upto`
        tells, and never not at all.
        """
        with self._lock:
            return [
                _snapshot_of_runs(table, runs, series) if metrics is None else _snapshot_of_metrics(table, metrics)
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
                for row, buffer in table.runs.get(run, {}).items():
                    if buffer.seqs[-1] > after and (series is None or row in series):
                        new = tuple(part for part, seq in zip(buffer.parts, buffer.seqs, strict=True) if seq > after)
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
                    names = {buffer.metric for buffer in table.runs.get(run, {}).values() if buffer.seqs[-1] > after}
                    if names:
                        found.setdefault(run, set()).update(names)
            return found

    def pending(self) -> int:
        """Points in memory that wait to be folded."""
        with self._lock:
            return self._active.points.total() + (self._frozen.points.total() if self._frozen else 0)

    def _tables(self, after: int) -> list[_Table]:
        tables = (self._flushed, self._frozen, self._active)
        return [table for table in tables if table is not None and table.upto > after]


def _snapshot_of_runs(table: _Table, runs: Iterable[int] | None, wanted: Collection[int] | None) -> MemtableSnapshot:
    buffers = {
        series: _snapshot_of_buffer(run, buffer)
        for run in (table.runs if runs is None else runs)
        for series, buffer in table.runs.get(run, {}).items()
        if wanted is None or series in wanted
    }
    return MemtableSnapshot(table.upto, buffers, dict(table.points))


def _snapshot_of_metrics(table: _Table, metrics: Iterable[str]) -> MemtableSnapshot:
    buffers = {
        series: _snapshot_of_buffer(run, buffer)
        for metric in metrics
        for series, (run, buffer) in table.metrics.get(metric, {}).items()
    }
    return MemtableSnapshot(table.upto, buffers, dict(table.points))


def _snapshot_of_buffer(run: int, buffer: _SeriesBuffer) -> BufferSnapshot:
    if buffer.snapshot is None:
        buffer.snapshot = BufferSnapshot(
            run, buffer.process, buffer.metric, tuple(buffer.parts), buffer.n, buffer.newest, buffer.totals_cache
        )
    return buffer.snapshot
