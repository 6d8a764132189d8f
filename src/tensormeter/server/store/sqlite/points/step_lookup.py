"""Lookup of the step that a process logged at a given time, from the process's gauge `tensormeter.step`."""

import sqlite3
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.server.store.models.points import Points, steps_at
from tensormeter.server.store.sqlite.points.memtable import MemtableSnapshot
from tensormeter.server.store.sqlite.points.segment_reader import read_at

__all__ = ["StepLookup"]


class StepLookup:
    """A lookup of single steps, first in memory and then in segments, as of one snapshot and for use by one thread."""

    def __init__(self, connection: sqlite3.Connection, snapshots: Sequence[MemtableSnapshot]) -> None:
        self._connection = connection
        self._snapshots = snapshots
        self._series_rows: dict[int, list[int]] = {}
        self._memory: dict[int, Points] = {}
        self._known: dict[int, tuple[int, int | None]] = {}
        self._step_series: dict[int, list[int]] = {}
        for snapshot in snapshots:
            for series, buffer in snapshot.series.of_metric(STEP_METRIC):
                self._step_series.setdefault(buffer.process, []).append(series)

    def at(self, process: int, time: int) -> int | None:
        """Return the step logged at exactly this time, or None."""
        known = self._known.get(process)
        if known is None or known[0] != time:  # the series of a row have the same time
            known = self._known[process] = (time, self._at(process, time))
        return known[1]

    def _at(self, process: int, time: int) -> int | None:
        times = np.array([time], np.int64)
        step = _one(self._in_memory(process), times)
        if step is None:
            for series in self._series(process):
                step = _one(read_at(self._connection, (), series, times), times)
                if step is not None:
                    break
        return step

    def _in_memory(self, process: int) -> Points:
        points = self._memory.get(process)
        if points is None:
            parts = [
                part
                for snapshot in self._snapshots
                for series in self._step_series.get(process, ())
                if series in snapshot.series
                for part in snapshot.series[series].parts
                if isinstance(part, Points)
            ]
            points = self._memory[process] = Points.concat(parts).distinct()
        return points

    def _series(self, process: int) -> list[int]:
        rows = self._series_rows.get(process)
        if rows is None:
            result = self._connection.execute(
                "SELECT id FROM series WHERE process = ? AND metric = ? AND kind = 'gauge'", (process, STEP_METRIC)
            )
            rows = self._series_rows[process] = [row[0] for row in result]
        return rows


def _one(steps: Points, times: NDArray[np.int64]) -> int | None:
    values, stepped = steps_at(steps, times)
    return int(values[0]) if stepped[0] else None
