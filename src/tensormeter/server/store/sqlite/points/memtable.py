"""The memtable, which holds the newest points of each series in memory until they are flushed to segments.

The commit log contains the same points, so losing the memtable loses no data.
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
    """One or more points of a series, with the row IDs of their run, process and series."""

    run: int
    process: int
    series: int
    metric: str
    points: Column


class TotalsCache:
    """The totals of a buffer, computed by one reader for later readers.

    Attributes:
        value: Number of parts included and their totals, or None before the first computation.
    """

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: tuple[int, Totals] | None = None  # replaced as a whole, so that threads need no lock


@dataclass(slots=True)
class _SeriesBuffer:
    """The points of one series in order of arrival. `seqs` contains the number of the journal row for each part."""

    process: int
    metric: str
    parts: list[Column]
    seqs: list[int]
    n: int
    newest: Newest
    totals_cache: TotalsCache = field(default_factory=TotalsCache)
    snapshot: "BufferSnapshot | None" = None  # snapshot of the current contents, if a reader has taken one


@dataclass(slots=True)
class _Table:
    """Buffers by run and series, and by metric, with the number of the last journal row that they contain."""

    runs: dict[int, dict[int, _SeriesBuffer]] = field(default_factory=dict)
    metrics: dict[str, dict[int, tuple[int, _SeriesBuffer]]] = field(default_factory=dict)
    points: Counter[int] = field(default_factory=Counter)
    upto: int = 0


@dataclass(frozen=True, slots=True)
class BufferSnapshot:
    """The contents of a buffer at one moment."""

    run: int
    process: int
    metric: str
    parts: tuple[Column, ...]
    n: int
    newest: Newest
    totals_cache: TotalsCache

    def totals(self) -> Totals | None:
        """Return the totals of all parts; None for distributions."""
        included, totals = self.totals_cache.value or (0, None)
        if included < len(self.parts):
            new_parts = [part for part in self.parts[included:] if isinstance(part, Points)]
            if not new_parts:
                return None
            new_totals = Totals.of(Points.concat(new_parts))
            totals = new_totals if totals is None else Totals.merge((totals, new_totals))
            self.totals_cache.value = len(self.parts), totals
        return totals


@dataclass(frozen=True, slots=True)
class MemtableSnapshot:
    """The contents of buffers at one moment.

    Attributes:
        upto: Number of the last journal row in the buffers. Once the journal has no rows up to this number, all of
            these points are in segments.
        series: Requested buffers, by series.
        points: Number of points by run, including duplicates.
    """

    upto: int
    series: Mapping[int, BufferSnapshot]
    points: Mapping[int, int]


class Memtable:
    """A memtable. Points are added to an active table, and a flush freezes it and starts a new one.

    The most recently flushed table stays in memory for readers that request new points since their last read.

    Any thread may call any method, which takes a lock briefly. Only a thread that holds the write lock may call `append`
    and `freeze`, so that these calls follow the order of the journal.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active = _Table()
        self._frozen: _Table | None = None
        self._flushed = _Table()
        self._floor = 0
        self._last = 0

    def begin(self, seq: int) -> None:
        """Set the number of the last journal row whose points are already in segments. Call this method first."""
        with self._lock:
            self._floor = self._last = seq

    def append(self, seq: int, arrivals: Iterable[SeriesPoints]) -> None:
        """Add the points of journal row `seq`."""
        with self._lock:
            table = self._active
            table.upto = self._last = seq
            for located in arrivals:
                points = located.points
                table.points[located.run] += len(points)
                buffers = table.runs.setdefault(located.run, {})
                buffer = buffers.get(located.series)
                latest = newest(points)
                if buffer is None:
                    buffer = _SeriesBuffer(located.process, located.metric, [points], [seq], len(points), latest)
                    buffers[located.series] = buffer
                    table.metrics.setdefault(located.metric, {})[located.series] = located.run, buffer
                    continue
                buffer.parts.append(points)
                buffer.seqs.append(seq)
                buffer.n += len(points)
                buffer.snapshot = None
                if latest[0] > buffer.newest[0]:
                    buffer.newest = latest

    def freeze(self) -> MemtableSnapshot | None:
        """Return all points to flush next, or None. The result stays the same until `discard` is called."""
        with self._lock:
            if self._frozen is None and self._active.upto:
                self._frozen, self._active = self._active, _Table()
            if self._frozen is None:
                return None
            return _snapshot_of_runs(self._frozen, None, None)

    def discard(self) -> None:
        """Mark the frozen table as flushed, after its points have been written to segments.

        The table replaces the previously flushed table, which is dropped.
        """
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
        """Return the current contents, oldest first.

        Take these snapshots before the database snapshot. Points that are flushed in between are then in both, and
        `upto` shows that they are. In the opposite order, these points would be in neither.

        Args:
            runs: Runs whose buffers to return; None for all runs. Point counts always cover all runs.
            series: Series whose buffers to return; None for all series of these runs.
            metrics: Metrics whose buffers to return; None to use `series`.
        """
        with self._lock:
            return [
                _snapshot_of_runs(table, runs, series)
                if metrics is None
                else _snapshot_of_metrics(table, metrics, runs)
                for table in (self._frozen, self._active)
                if table is not None and table.upto
            ]

    def last(self) -> int:
        """Return the number of the last journal row that was added."""
        return self._last

    def since(
        self, run: int, after: int, series: Collection[int] | None = None
    ) -> dict[int, tuple[Column, ...]] | None:
        """Return a run's points from journal rows after number `after`, by series; None if rows have left memory."""
        with self._lock:
            if not self._floor <= after <= self._last:
                return None
            parts_by_series: dict[int, tuple[Column, ...]] = {}
            for table in self._tables(after):
                for row, buffer in table.runs.get(run, {}).items():
                    if buffer.seqs[-1] > after and (series is None or row in series):
                        new_parts = tuple(
                            part for part, seq in zip(buffer.parts, buffer.seqs, strict=True) if seq > after
                        )
                        parts_by_series[row] = parts_by_series.get(row, ()) + new_parts
            return parts_by_series

    def grown(self, after: int, runs: Collection[int] | None = None) -> dict[int, set[str]] | None:
        """Return the metrics with points from journal rows after number `after`, by run.

        Returns None if some of these rows have left memory.
        """
        with self._lock:
            if not self._floor <= after <= self._last:
                return None
            metrics: dict[int, set[str]] = {}
            for table in self._tables(after):
                for run in table.runs if runs is None else runs:
                    grown = {buffer.metric for buffer in table.runs.get(run, {}).values() if buffer.seqs[-1] > after}
                    if grown:
                        metrics.setdefault(run, set()).update(grown)
            return metrics

    def pending(self) -> int:
        """Return the number of points in memory that wait to be flushed."""
        with self._lock:
            return self._active.points.total() + (self._frozen.points.total() if self._frozen else 0)

    def _tables(self, after: int) -> list[_Table]:
        tables = (self._flushed, self._frozen, self._active)
        return [table for table in tables if table is not None and table.upto > after]


def _snapshot_of_runs(
    table: _Table, runs: Iterable[int] | None, series_filter: Collection[int] | None
) -> MemtableSnapshot:
    buffers: dict[int, BufferSnapshot] = {}
    for run in table.runs if runs is None else runs:
        of_run = table.runs.get(run, {})
        for series in of_run if series_filter is None else of_run.keys() & series_filter:
            buffers[series] = _snapshot_of_buffer(run, of_run[series])
    return MemtableSnapshot(table.upto, buffers, dict(table.points))


def _snapshot_of_metrics(table: _Table, metrics: Collection[str], runs: Collection[int] | None) -> MemtableSnapshot:
    buffers: dict[int, BufferSnapshot] = {}
    of_runs = [] if runs is None else [(run, table.runs[run]) for run in runs if run in table.runs]
    of_metrics = [table.metrics[metric] for metric in metrics if metric in table.metrics]
    if runs is not None and sum(len(series) for _, series in of_runs) < sum(map(len, of_metrics)):
        for run, of_run in of_runs:
            for series, buffer in of_run.items():
                if buffer.metric in metrics:
                    buffers[series] = _snapshot_of_buffer(run, buffer)
    else:
        for of_metric in of_metrics:
            for series, (run, buffer) in of_metric.items():
                if runs is None or run in runs:
                    buffers[series] = _snapshot_of_buffer(run, buffer)
    return MemtableSnapshot(table.upto, buffers, dict(table.points))


def _snapshot_of_buffer(run: int, buffer: _SeriesBuffer) -> BufferSnapshot:
    if buffer.snapshot is None:
        buffer.snapshot = BufferSnapshot(
            run, buffer.process, buffer.metric, tuple(buffer.parts), buffer.n, buffer.newest, buffer.totals_cache
        )
    return buffer.snapshot
