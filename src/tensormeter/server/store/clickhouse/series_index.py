"""The stored series of the runs that this server is committing to, in memory at 16 bytes per series."""

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.clickhouse.arrival_log import Log
from tensormeter.server.store.clickhouse.connection import Connection, numbers

__all__ = ["SeriesIndex"]

_MOST: Final = 4_500_000
"""Maximum number of series in the index. The index keeps the runs of the current commit in any case."""

_RUN: Final = 25
"""Number of series that take as much memory as the objects of a run."""

_RECENT: Final = 300
"""Seconds after which an unused run is read again. The difference between server clocks plus this is below `Log.others`' limit."""

_SIDES: Final = ("left", "right")
_SERIES: Final = np.dtype([("run", "<u8"), ("series", "<u8"), ("newest", "<i8")])


@dataclass(eq=False, slots=True)
class _Run:
    """The series of a run.

    Attributes:
        keys: uint64, ascending: keys of the series.
        newest: int64: time of each series' newest point.
        others: Number of the newest log entry of another server; see `Log.others`.
        used: Time of the last use on the monotonic clock, in seconds.
    """

    keys: NDArray[np.uint64]
    newest: NDArray[np.int64]
    others: int
    used: float


class SeriesIndex:
    """An index of series and their newest points. Only one commit at a time uses it.

    The arrival log shows whether other servers have written to a run. If so, the run is read again.
    """

    def __init__(self, connection: Connection, log: Log) -> None:
        self._connection = connection
        self._log = log
        self._runs: dict[int, _Run] = {}
        self._size = 0

    def load(self, runs: Collection[int]) -> None:
        """Make sure that the index contains the current series of these runs. Call this before the other methods."""
        now = time.monotonic()
        others = self._log.others(runs)
        current: dict[int, _Run] = {}
        for run in runs:
            entry = self._take(run)
            if entry is not None and now - entry.used < _RECENT and entry.others >= others.get(run, 0):
                current[run] = entry
        absent = [run for run in runs if run not in current]
        if absent:
            columns = self._connection.columns(
                "SELECT run, series, max(tupleElement(last, 1)) FROM summary"
                f" WHERE run IN ({numbers(absent)}) GROUP BY run, series ORDER BY run, series",
                _SERIES,
            )
            for run in absent:
                first, end = (np.searchsorted(columns["run"], np.uint64(run), side) for side in _SIDES)
                part = columns[first:end]
                current[run] = _Run(part["series"].copy(), part["newest"].copy(), others.get(run, 0), now)
        self._make_room(sum(_RUN + len(entry.keys) for entry in current.values()))
        for run, entry in current.items():  # at the end, because the first runs are evicted first
            entry.used = now
            self._runs[run] = entry

    def newest(self, run: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the time of the newest point of each series, or 0 for series that are not stored."""
        entry = self._runs[run]
        if not len(entry.keys):
            return np.zeros(len(keys), np.int64)
        index = np.minimum(np.searchsorted(entry.keys, keys), len(entry.keys) - 1)
        return np.where(entry.keys[index] == keys, entry.newest[index], 0)

    def count(self, run: int) -> int:
        """Return the number of series in a run."""
        return len(self._runs[run].keys)

    def update(self, run: int, keys: NDArray[np.uint64], newest: NDArray[np.int64]) -> None:
        """Add series that have been written. The keys must be distinct and ascending."""
        entry = self._runs[run]
        index = np.searchsorted(entry.keys, keys)
        known = index < len(entry.keys)
        known[known] = entry.keys[index[known]] == keys[known]
        entry.newest[index[known]] = np.maximum(entry.newest[index[known]], newest[known])
        if not known.all():
            entry.keys = np.insert(entry.keys, index[~known], keys[~known])
            entry.newest = np.insert(entry.newest, index[~known], newest[~known])
            self._size += int((~known).sum())

    def forget(self) -> None:
        """Clear the index after a failure, when it is unknown which rows were written."""
        self._runs.clear()
        self._size = 0

    def _take(self, run: int) -> _Run | None:
        entry = self._runs.pop(run, None)
        if entry is not None:
            self._size -= _RUN + len(entry.keys)
        return entry

    def _make_room(self, size: int) -> None:
        while self._runs and self._size + size > _MOST:
            self._take(next(iter(self._runs)))
        self._size += size
