"""Reading of a metric process by process, in memory for a few processes."""

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.server.store.models.point_range import PointRange
from tensormeter.server.store.models.rollup_blocks import BLOCK_POINTS
from tensormeter.server.store.models.series import ProcessRollups, Selection
from tensormeter.server.store.rules.limits import check_limit
from tensormeter.server.store.rules.process_rollups import join_steps
from tensormeter.server.store.sqlite.points.memtable import MemtableSnapshot
from tensormeter.server.store.sqlite.points.rollups import read_rollups
from tensormeter.server.store.sqlite.points.segment_batches import (
    SegmentBatches,
    SeriesSpans,
    count_in_memory,
    spans_between,
)
from tensormeter.server.store.sqlite.points.segment_rows import Span, list_spans, sound_list
from tensormeter.server.store.sqlite.points.segments import SEGMENT_POINTS
from tensormeter.server.store.sqlite.points.series_reader import SeriesRow, to_series

__all__ = ["ProcessScan"]


class ProcessScan:
    """A reader of the selected series of many processes, as of one snapshot and for use by one thread."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        snapshots: Sequence[MemtableSnapshot],
        rows: Sequence[SeriesRow],
        window: PointRange,
        selection: Selection,
        *,
        blocks: int,
    ) -> None:
        """Prepare the scan.

        Args:
            connection: Connection to read with.
            snapshots: Points in memory.
            rows: Series of the selected metrics and of the steps.
            window: Range of points to read.
            selection: Selection of the metrics. Damage raises an error.
            blocks: Minimum number of blocks of a series that is read as blocks.

        Raises:
            TooManyPointsError: The scan needs more points than the selection's limit.
            DamagedError: A series is damaged.
        """
        self._connection = connection
        self._snapshots = snapshots
        self._window = window
        self._selection = selection
        self._blocks = blocks
        self._series: dict[str, list[SeriesRow]] = defaultdict(list)
        self._steps: dict[str, list[SeriesRow]] = defaultdict(list)
        for row in rows:
            if row[2] in selection.metrics:
                self._series[row[1]].append(row)
            if row[2] == STEP_METRIC:
                self._steps[row[1]].append(row)
        self._spans: dict[int, list[Span]] = {
            series: sound_list(listed) for series, listed in list_spans(connection, [row[0] for row in rows]).items()
        }

    def read(self, processes: Sequence[str]) -> Iterator[ProcessRollups]:
        """Yield the series of the given processes, in this order. Raises the same errors as the constructor."""
        present = [process for process in processes if process in self._series]
        short = [process for process in present if not self._is_long(process)]
        wanted = [item for process in short for item in self._wanted(process)]
        total = sum(
            sum(span.n for span in spans) + count_in_memory(self._snapshots, series) for series, spans in wanted
        )
        check_limit(total, self._selection.limit, self._selection.metrics)
        for is_long, group in groupby(present, self._is_long):
            neighbors = [*group]
            yield from map(self._read_long, neighbors) if is_long else self._read_short(neighbors)

    def _is_long(self, process: str) -> bool:
        """Return whether any series of a process has enough full segments to be read as blocks."""
        return any(
            sum(span.n for span in self._spans[row[0]] if span.n >= SEGMENT_POINTS) >= self._blocks * BLOCK_POINTS
            for row in self._series[process]
        )

    def _read_long(self, process: str) -> ProcessRollups:
        rows = self._series[process]
        selection = replace(self._selection, process=process)
        rollups = read_rollups(
            self._connection, self._snapshots, rows, self._window, selection, blocks=self._blocks, gaps={}
        )
        return ProcessRollups(process, rollups)

    def _wanted(self, process: str) -> Iterator[SeriesSpans]:
        rows = self._series[process]
        if any(self._window.needs_steps((process, row[2])) for row in rows):
            rows = rows + [row for row in self._steps[process] if row not in rows]
        for row in rows:
            yield row[0], spans_between(self._spans[row[0]], self._window.start, self._window.stop)

    def _read_short(self, processes: Sequence[str]) -> Iterator[ProcessRollups]:
        selection = replace(self._selection, start=self._window.start, stop=self._window.stop)
        wanted = [[*self._wanted(process)] for process in processes]
        reader = SegmentBatches(self._connection, self._snapshots, selection)
        columns = reader.read(item for items in wanted for item in items)
        for process, items in zip(processes, wanted, strict=True):
            points = dict(next(columns) for _ in items)
            series = [to_series(row, points[row[0]]) for row in self._series[process]]
            steps = [to_series(row, points[row[0]]) for row in self._steps[process] if row[0] in points]
            yield join_steps(process, series, steps, self._window)
