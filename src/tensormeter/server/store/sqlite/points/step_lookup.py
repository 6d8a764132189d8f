"""Lookup of the step that a process logged at a given time, from the process's gauge `tensormeter.step`."""

import sqlite3
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.server.store.models.points import Points, steps_at
from tensormeter.server.store.sqlite.points.memtable import MemtableSnapshot
from tensormeter.server.store.sqlite.points.segment_rows import Span, find_segments, spans
from tensormeter.server.store.sqlite.points.segments import decode_segment

__all__ = ["StepLookup"]

_TIMES: Final = 10_000
"""Maximum number of steps to keep. The series of a row have the same time."""

_SEGMENTS: Final = 8
"""Maximum number of decoded segments to keep."""


class StepLookup:
    """A lookup of single steps, first in memory and then in segments, as of one snapshot and for use by one thread."""

    def __init__(self, connection: sqlite3.Connection, snapshots: Sequence[MemtableSnapshot]) -> None:
        self._connection = connection
        self._snapshots = snapshots
        self._series_rows: dict[int, list[int]] = {}
        self._memory: dict[int, Points] = {}
        self._known: dict[tuple[int, int], int | None] = {}
        self._segments: OrderedDict[tuple[int, Span], Points] = OrderedDict()
        self._step_series: dict[int, list[int]] = {}
        for snapshot in snapshots:
            for series, buffer in snapshot.series.of_metric(STEP_METRIC):
                self._step_series.setdefault(buffer.process, []).append(series)

    def at(self, process: int, time: int) -> int | None:
        """Return the step logged at exactly this time, or None."""
        key = process, time
        if key not in self._known:
            if len(self._known) >= _TIMES:
                self._known.clear()
            self._known[key] = self._at(process, time)
        return self._known[key]

    def _at(self, process: int, time: int) -> int | None:
        times = np.array([time], np.int64)
        step = _one(self._in_memory(process), times)
        for series in self._series(process) if step is None else ():
            for span in spans(self._connection, series):
                if span.t_min <= time <= span.t_max:
                    step = _one(self._in_segment(series, span), times)
                    if step is not None:
                        return step
        return step

    def _in_segment(self, series: int, span: Span) -> Points:
        points = self._segments.get((series, span))
        if points is None:
            (segment,) = find_segments(self._connection, series, [span])
            points = self._segments[series, span] = decode_segment(segment).distinct()
            if len(self._segments) > _SEGMENTS:
                self._segments.popitem(last=False)
        return points

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
