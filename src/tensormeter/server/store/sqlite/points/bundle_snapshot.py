"""The points in bundles, in the form of the memtable's points, so that readers handle both in the same way."""

import sqlite3
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.models.points import Column, Newest
from tensormeter.server.store.rules.totals import Totals
from tensormeter.server.store.sqlite.points.bundles import GROUP, Bundle, read_bundles
from tensormeter.server.store.sqlite.points.memtable import (
    Buffers,
    BufferSnapshot,
    MemtableSnapshot,
    SnapshotSelection,
)

__all__ = ["WIDE", "bundled"]

WIDE: Final = 1000
"""Number of series from which on a run's short series share bundles."""

_CACHED: Final = 64
"""Maximum number of groups whose bundles a snapshot keeps."""

_ALWAYS: Final = (1 << 63) - 1


def bundled(connection: sqlite3.Connection, selection: SnapshotSelection) -> MemtableSnapshot:
    """Return the points in bundles, as of the connection's transaction.

    Args:
        connection: Connection to read with, while the snapshot is used.
        selection: Runs and metrics that iteration covers. Lookups cover all series.
    """
    return MemtableSnapshot(_ALWAYS, _Bundled(connection, selection.runs, selection.metrics), {}, selection)


class _BundledPoints(BufferSnapshot):
    """The points of one series in bundles."""

    __slots__ = ("_found_in", "_source")

    def __init__(self, source: "_Bundled", series: int, found_in: Sequence[tuple[Bundle, int]]) -> None:
        self._source = source
        self._series = series
        self._found_in = found_in

    @property
    def run(self) -> int:  # type: ignore[override]
        """Row ID of the run."""
        return self._source.owner(self._series)[0]

    @property
    def process(self) -> int:
        """Row ID of the process."""
        return self._source.owner(self._series)[1]

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return self._source.owner(self._series)[2]

    @property
    def parts(self) -> tuple[Column, ...]:  # type: ignore[override]
        """Points in order of arrival. Raises DamagedError."""
        try:
            return tuple(bundle.points_at(index) for bundle, index in self._found_in)
        except DamagedError as error:
            raise DamagedError(str(error), series=self._series) from None

    @property
    def n(self) -> int:
        """Number of points."""
        return sum(int(bundle.heads.counts[index]) for bundle, index in self._found_in)

    @property
    def newest(self) -> Newest:
        """The latest point."""
        heads, index = max(
            ((bundle.heads, index) for bundle, index in self._found_in), key=lambda found: found[0].last_times[found[1]]
        )
        return int(heads.last_times[index]), int(heads.last_words[index]), bool(heads.last_integers[index])

    def totals(self) -> Totals:
        """Return the totals of all points."""
        return Totals.merge(bundle.heads.totals_at(index) for bundle, index in self._found_in)


class _Bundled(Buffers):
    def __init__(
        self, connection: sqlite3.Connection, runs: Collection[int] | None, metrics: Collection[str] | None
    ) -> None:
        super().__init__((), {})
        self._connection = connection
        self._runs = runs
        self._of_metrics = metrics
        self._groups: OrderedDict[int, list[Bundle]] = OrderedDict()
        self._owners: dict[int, tuple[int, int, str]] = {}
        self._current: BufferSnapshot | None = None
        self._current_series = -1
        """Series that the iteration has reached."""

    def get(self, series: int, default: BufferSnapshot | None = None) -> BufferSnapshot | None:  # type: ignore[override]
        """Return the points of a series, or `default`. Raises DamagedError."""
        if series == self._current_series:
            return self._current
        try:
            found_in = [(bundle, bundle.index(series)) for bundle in self._bundles(series // GROUP)]
        except DamagedError as error:
            raise DamagedError(str(error), series=series) from None
        found_in = [(bundle, index) for bundle, index in found_in if index >= 0]
        return _BundledPoints(self, series, found_in) if found_in else default

    def __iter__(self) -> Iterator[int]:
        runs = self._wide_runs()
        marks = ", ".join("?" * len(self._of_metrics or ()))
        condition = "" if self._of_metrics is None else f" AND metric IN ({marks})"
        for run in runs:
            rows = self._connection.execute(
                "SELECT series.id, process.id, metric FROM process JOIN series ON series.process = process.id"
                f" WHERE run = ?{condition} ORDER BY series.id",
                (run, *(self._of_metrics or ())),
            ).fetchall()
            for series, process, metric in rows:
                self._owners = {series: (run, process, metric)}
                found = self.get(series)
                if found is not None:
                    self._current, self._current_series = found, series
                    yield series

    def of_metric(self, metric: str) -> Iterator[tuple[int, BufferSnapshot]]:
        """Yield nothing, because steps, the only metric that is looked up by name, are never in bundles."""
        return iter(())

    def owner(self, series: int) -> tuple[int, int, str]:
        """Return the row IDs of a series' run and process, and its metric. Raises DamagedError."""
        if series not in self._owners:
            row = self._connection.execute(
                "SELECT run, process.id, metric FROM series JOIN process ON process.id = series.process"
                " WHERE series.id = ?",
                (series,),
            ).fetchone()
            if row is None:
                raise DamagedError(f"the row of series {series} is missing", series=series)
            self._owners = {series: row}
        return self._owners[series]

    def _wide_runs(self) -> list[int]:
        only = "" if self._runs is None else f"id IN ({', '.join(map(str, self._runs))}) AND "
        rows = self._connection.execute(f"SELECT id FROM run WHERE {only}series >= ? AND NOT deleted", (WIDE,))
        return [run for (run,) in rows]

    def _bundles(self, group: int) -> list[Bundle]:
        bundles = self._groups.get(group)
        if bundles is None:
            bundles = self._groups[group] = read_bundles(self._connection, group)
            if len(self._groups) > _CACHED:
                self._groups.popitem(last=False)
        else:
            self._groups.move_to_end(group)
        return bundles
