"""The memtable, which holds the newest points of each series in memory until they are flushed to segments.

The commit log contains the same points, so losing the memtable loses no data.
"""

import threading
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.number_blocks import hash_name
from tensormeter.server.store.models.points import Blobs, Column, Newest, Points, newest
from tensormeter.server.store.rules.ingest_blocks import BlockArrival
from tensormeter.server.store.rules.totals import Totals
from tensormeter.server.store.sqlite.points.new_numbers import SeriesByName, find_metrics, find_non_finite
from tensormeter.server.store.sqlite.points.number_parts import NumberIndex, NumberPart, Owners, RunNumbers

__all__ = [
    "BufferSnapshot",
    "Buffers",
    "LocatedNumbers",
    "Memtable",
    "MemtableSnapshot",
    "SeriesPoints",
    "SnapshotSelection",
    "located_numbers",
]

_FEW_RUNS: Final = 8
"""Number of runs up to which each one is asked for a series."""


@dataclass(frozen=True, slots=True)
class SeriesPoints:
    """One or more points of a series, with the row IDs of their run, process and series."""

    run: int
    process: int
    series: int
    metric: str
    points: Column


@dataclass(frozen=True, slots=True, eq=False)
class LocatedNumbers:
    """Stretches of number points of one run. The arrays are those of `NumberPart`, with the number of points of each stretch."""

    run: int
    series: NDArray[np.int64]
    names: NDArray[np.uint64]
    counts: NDArray[np.int64]
    points: Points


def located_numbers(run: int, arrival: BlockArrival, series: NDArray[np.int64]) -> list[LocatedNumbers]:
    """Return the points of a block whose stretches belong to the given series, or to no series where it is 0."""
    block = arrival.block
    if not series.all():
        block = block.select(np.repeat(series != 0, block.counts))
        series = series[series != 0]
    points = Points(block.times.view(np.int64), block.words, block.integers)
    return [LocatedNumbers(run, series, block.names, block.counts, points)] if len(series) else []


@dataclass(slots=True)
class _BlobBuffer:
    """The distributions of one series in order of arrival. `seqs` contains the number of the journal row for each part."""

    process: int
    metric: str
    parts: list[Blobs]
    seqs: list[int]

    def between(self, after: int, upto: int | None) -> tuple[Blobs, ...]:
        """Return the parts from journal rows after number `after`, up to number `upto` if it is not None."""
        first = bisect_right(self.seqs, after)
        return tuple(self.parts[first : None if upto is None else bisect_right(self.seqs, upto)])


@dataclass(slots=True)
class _Table:
    """Points by run, with the number of the last journal row that they contain."""

    numbers: dict[int, RunNumbers] = field(default_factory=dict)
    blobs: dict[int, dict[int, _BlobBuffer]] = field(default_factory=dict)
    points: Counter[int] = field(default_factory=Counter)
    total: int = 0
    upto: int = 0

    def count(self, run: int, points: int) -> None:
        """Add to the number of points."""
        self.points[run] += points
        self.total += points


class BufferSnapshot:
    """The points of one series in a memtable at one moment."""

    __slots__ = ("_index", "_owner", "_series", "parts", "run")

    def __init__(
        self, run: int, series: int, parts: tuple[Column, ...], source: "NumberIndex | tuple[int, str]"
    ) -> None:
        """Create a snapshot.

        Args:
            run: Row ID of the run.
            series: Row ID of the series.
            parts: Points in order of arrival.
            source: Index that contains the series; for distributions, the process and the metric.
        """
        self.run = run
        self.parts = parts
        self._series = series
        self._index = source if isinstance(source, NumberIndex) else None
        self._owner = None if isinstance(source, NumberIndex) else source

    @property
    def process(self) -> int:
        """Row ID of the process."""
        return self._found()[0]

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return self._found()[1]

    @property
    def n(self) -> int:
        """Number of points."""
        return sum(map(len, self.parts))

    @property
    def newest(self) -> Newest:
        """The first of the points with the latest time."""
        return newest(type(self.parts[0]).concat(self.parts))

    def totals(self) -> Totals | None:
        """Return the totals of all parts; None for distributions."""
        return None if self._index is None else self._index.totals(self._series)

    def _found(self) -> tuple[int, str]:
        if self._owner is None:
            assert self._index is not None
            self._owner = self._index.owner(self._series)
        return self._owner


class Buffers(Mapping[int, BufferSnapshot]):
    """The points of some series at one moment, by row ID of the series. Nothing is copied before a series is read."""

    def __init__(
        self,
        numbers: Sequence[NumberIndex],
        blobs: Mapping[int, BufferSnapshot],
        series: Collection[int] | None = None,
        metrics: Collection[str] | None = None,
    ) -> None:
        self._all_numbers = numbers
        self._blobs = blobs
        self._series = series
        self._metrics = metrics
        self._known: dict[int, BufferSnapshot] = {}

    @property
    def numbers(self) -> Sequence[NumberIndex]:
        """Indexes of the number points, one for each run."""
        return self._numbers

    @property
    def distributions(self) -> Mapping[int, BufferSnapshot]:
        """The distributions, by row ID of the series."""
        return self._blobs

    @cached_property
    def _numbers(self) -> Sequence[NumberIndex]:
        if self._series is None:
            return self._all_numbers
        return [index.narrow(self._series) for index in self._all_numbers]

    def __getitem__(self, series: int) -> BufferSnapshot:
        buffer = self.get(series)
        if buffer is None:
            raise KeyError(series)
        return buffer

    def get(self, series: int, default: "BufferSnapshot | None" = None) -> BufferSnapshot | None:  # type: ignore[override]
        """Return the points of a series, or `default`."""
        known = self._known.get(series) or self._blobs.get(series)
        if known is None and (self._series is None or series in self._series):
            for index in self._indexes(series):
                points = index.points(series)
                if points is not None:
                    known = self._known[series] = BufferSnapshot(index.run, series, (points,), index)
                    break
        return default if known is None else known

    def _indexes(self, series: int) -> Sequence[NumberIndex]:
        """Return the indexes that may contain a series."""
        if len(self._numbers) <= _FEW_RUNS:
            return self._numbers
        found, places = self._places
        first = np.searchsorted(found, series)
        return [self._numbers[places[first]]] if first < len(found) and found[first] == series else []

    @cached_property
    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
        """Row IDs of all series, ascending, and the place of each one's index in `_numbers`."""
        columns = [(place, part.series) for place, index in enumerate(self._numbers) for part in index.parts]
        series = np.concatenate([column for _, column in columns])
        order = np.argsort(series, kind="stable")
        return series[order], np.repeat([place for place, _ in columns], [len(column) for _, column in columns])[order]

    def __contains__(self, series: object) -> bool:
        return isinstance(series, int) and self.get(series) is not None

    def __iter__(self) -> Iterator[int]:
        for index in self._numbers:
            rows = index.series(self._metrics)
            index.resolve(rows)
            yield from rows
        yield from self._blobs

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def of_metric(self, metric: str) -> Iterator[tuple[int, BufferSnapshot]]:
        """Yield the number points of a metric, by row ID of the series."""
        for index in self._numbers:
            for series in index.series((metric,)):
                points = index.points(series)
                if points is not None and index.owner(series)[1] == metric:
                    yield series, BufferSnapshot(index.run, series, (points,), index)


@dataclass(frozen=True, slots=True)
class SnapshotSelection:
    """The runs and metrics whose buffers a snapshot contains; None for all."""

    runs: Collection[int] | None = None
    metrics: Collection[str] | None = None


@dataclass(frozen=True, slots=True)
class MemtableSnapshot:
    """The contents of buffers at one moment.

    Attributes:
        upto: Number of the last journal row in the buffers. Once the journal has no rows up to this number, all of
            these points are in segments.
        series: Requested buffers, by series.
        points: Number of points by run, including duplicates.
        selection: Runs and metrics whose buffers were requested.
    """

    upto: int
    series: Buffers
    points: Mapping[int, int]
    selection: SnapshotSelection = SnapshotSelection()


class Memtable:
    """A memtable. Points are added to an active table, and a flush freezes it and starts a new one.

    The most recently flushed table stays in memory for readers that request new points since their last read.

    Any thread may call any method, which takes a lock briefly. Only a thread that holds the write lock may call `append`
    and `freeze`, so that these calls follow the order of the journal.
    """

    def __init__(self, owners: Owners) -> None:
        """Create an empty memtable. `owners` finds the owners of series with number points, and may read the file."""
        self._owners = owners
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

    def append(self, seq: int, arrivals: Iterable[SeriesPoints], numbers: Iterable[LocatedNumbers] = ()) -> None:
        """Add the points of journal row `seq`."""
        blobs: list[SeriesPoints] = []
        separate: dict[int, list[SeriesPoints]] = defaultdict(list)
        for located in arrivals:
            if isinstance(located.points, Blobs):
                blobs.append(located)
            else:
                separate[located.run].append(located)
        parts = [
            (block.run, NumberPart.of(seq, block.series, block.names, block.counts, block.points)) for block in numbers
        ]
        parts += [(run, _part_of(seq, rows)) for run, rows in separate.items()]
        with self._lock:
            table = self._active
            table.upto = self._last = seq
            for run, part in parts:
                table.count(run, len(part.points))
                run_numbers = table.numbers.get(run)
                if run_numbers is None:
                    run_numbers = table.numbers[run] = RunNumbers()
                run_numbers.append(part)
            for located in blobs:
                table.count(located.run, len(located.points))
                buffers = table.blobs.setdefault(located.run, {})
                buffer = buffers.get(located.series)
                if buffer is None:
                    buffer = buffers[located.series] = _BlobBuffer(located.process, located.metric, [], [])
                assert isinstance(located.points, Blobs)
                buffer.parts.append(located.points)
                buffer.seqs.append(seq)

    def freeze(self) -> MemtableSnapshot | None:
        """Return all points to flush next, or None. The result stays the same until `discard` is called."""
        with self._lock:
            if self._frozen is None and self._active.upto:
                self._frozen, self._active = self._active, _Table()
            if self._frozen is None:
                return None
            return self._snapshot(self._frozen, SnapshotSelection())

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
        upto: int | None = None,
    ) -> list[MemtableSnapshot]:
        """Return the current contents, oldest first, as one or two snapshots. The last one may be empty.

        Take these snapshots before the database snapshot. Points that are flushed in between are then in both, and
        `upto` shows that they are. In the opposite order, these points would be in neither.

        Args:
            runs: Runs whose buffers to return; None for all runs. Point counts always cover all runs.
            series: Series whose buffers to return; None for all series of these runs.
            metrics: Metrics whose buffers to return; None for all metrics.
            upto: Number of the last journal row whose points to return; None for all rows.
        """
        selection = SnapshotSelection(runs, metrics)
        with self._lock:
            tables = (self._frozen, self._active)
            return [self._snapshot(table, selection, series, upto) for table in tables if table is not None]

    def last(self) -> int:
        """Return the number of the last journal row that was added."""
        return self._last

    def since(
        self, run: int, after: int, series: Collection[int] | None = None, upto: int | None = None
    ) -> dict[int, tuple[Column, ...]] | None:
        """Return a run's points from journal rows after number `after`, by series; None if rows have left memory.

        If `upto` is not None, points from journal rows after number `upto` are omitted.
        """
        parts_by_series: dict[int, tuple[Column, ...]] = {}
        numbers: list[NumberPart] = []
        with self._lock:
            if not self._floor <= after <= self._last:
                return None
            for table in self._tables(after):
                numbers += table.numbers[run].between(after, upto) if run in table.numbers else ()
                for row, buffer in table.blobs.get(run, {}).items():
                    if buffer.seqs[-1] > after and (series is None or row in series):
                        new_parts = buffer.between(after, upto)
                        if new_parts:
                            parts_by_series[row] = parts_by_series.get(row, ()) + new_parts
        if numbers:
            index = NumberIndex(run, numbers, self._owners)
            if series is not None:
                index = index.narrow(series)
            for row in index.series():
                points = index.points(row)
                if points is not None:
                    parts_by_series[row] = (points,)
        return parts_by_series

    def grown(self, after: int, limit: int, runs: Collection[int] | None = None) -> dict[int, set[str] | None] | None:
        """Return the metrics with points from journal rows after number `after`, by run; None for more than `limit` metrics.

        Returns None if some of these rows have left memory.
        """
        metrics: dict[int, set[str]] = {}
        new_parts: dict[int, list[NumberPart]] = defaultdict(list)
        with self._lock:
            if not self._floor <= after <= self._last:
                return None
            for table in self._tables(after):
                for run in {*table.numbers, *table.blobs} if runs is None else runs:
                    numbers = table.numbers.get(run)
                    if numbers is not None and numbers.last > after:
                        new_parts[run] += numbers.between(after, None)
                    for buffer in table.blobs.get(run, {}).values():
                        if buffer.seqs[-1] > after:
                            metrics.setdefault(run, set()).add(buffer.metric)
        grown: dict[int, set[str] | None] = {**metrics}
        for run, parts in new_parts.items():
            found = find_metrics(parts, limit)
            names = None if found is None else metrics.get(run, set()).union(self.metrics_of(found))
            grown[run] = names
        return {run: None if names is None or len(names) > limit else names for run, names in grown.items()}

    def non_finite(self, run: int, after: int) -> SeriesByName:
        """Return a run's metrics with NaN or infinite values from journal rows after number `after`.

        Returns no metrics if some of these rows have left memory.
        """
        parts: list[NumberPart] = []
        with self._lock:
            if self._floor <= after <= self._last:
                for table in self._tables(after):
                    parts += table.numbers[run].between(after, None) if run in table.numbers else ()
        return find_non_finite(parts)

    def metrics_of(self, found: SeriesByName) -> set[str]:
        """Return the names of metrics. Reads the file if the names are not in the cache."""
        return {metric for _, metric in self._owners([*found.values()]).values()}

    def pending(self) -> int:
        """Return the number of points in memory that wait to be flushed."""
        with self._lock:
            return self._active.total + (self._frozen.total if self._frozen else 0)

    def _tables(self, after: int) -> list[_Table]:
        tables = (self._flushed, self._frozen, self._active)
        return [table for table in tables if table is not None and table.upto > after]

    def _snapshot(
        self,
        table: _Table,
        selection: SnapshotSelection,
        series: Collection[int] | None = None,
        upto: int | None = None,
    ) -> MemtableSnapshot:
        runs, metrics = selection.runs, selection.metrics
        numbers = [
            table.numbers[run].index(run, self._owners, upto)
            for run in (table.numbers if runs is None else runs)
            if run in table.numbers
        ]
        blobs = {
            row: BufferSnapshot(run, row, parts, (buffer.process, buffer.metric))
            for run in (table.blobs if runs is None else runs)
            for row, buffer in table.blobs.get(run, {}).items()
            if (series is None or row in series) and (metrics is None or buffer.metric in metrics)
            if (parts := buffer.between(-1, upto))
        }
        buffers = Buffers(numbers, blobs, series, metrics)
        return MemtableSnapshot(table.upto, buffers, dict(table.points), selection)


def _part_of(seq: int, rows: Sequence[SeriesPoints]) -> NumberPart:
    """Create a part from points of one run that did not arrive in blocks."""
    columns = [row.points for row in rows if isinstance(row.points, Points)]
    return NumberPart.of(
        seq,
        np.array([row.series for row in rows], np.int64),
        np.array([hash_name(row.metric) for row in rows], np.uint64),
        np.array([len(points) for points in columns], np.int64),
        Points.concat(columns),
    )
