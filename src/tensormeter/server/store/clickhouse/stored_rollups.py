"""Reading of a long series from the rollups that commits have stored, and from its points that are not dense.

A row of the table `rollup` represents the points of one series in one commit (see `rollup_encoding`). Commits write it
before these points, so each dense point has a row. After a failed commit, a row may represent points that a later commit
stores again together with others. Such rows overlap, and their points are read instead.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.clickhouse.connection import Connection
from tensormeter.server.store.clickhouse.point_reader import TIME, time_range
from tensormeter.server.store.clickhouse.rowbinary import read_string
from tensormeter.server.store.clickhouse.series_points import read_points, read_steps
from tensormeter.server.store.models.point_range import PointRange, Track
from tensormeter.server.store.models.points import Points, steps_at
from tensormeter.server.store.models.rollup_blocks import BLOCK_POINTS, Blocks
from tensormeter.server.store.rules.rollup_joining import (
    UnorderedError,
    join_rollups,
    select_rollups,
    separate_rollups,
)

__all__ = ["StoredRollups"]

_MOST_POINTS: Final = 200_000
"""Maximum number of points to read of one series. With more, ClickHouse computes its blocks faster."""

_MOST_RANGES: Final = 200
"""Maximum number of rows of `rollup` whose points are read."""

_ROLLUP: Final = np.dtype(
    [("first", "<i8"), ("last", "<i8"), ("points", "<u4"), ("stepped", "u1"), ("lowest", "<i8"), ("highest", "<i8")]
)
_KEY_BYTES: Final = 8 + 8 + 4
"""Size of a row's first time, last time and number of points."""

_Steps = NDArray[np.int64] | None


class _Rollup(NamedTuple):
    """A row of the table `rollup`, without its blocks.

    Attributes:
        times: Time of the first and of the last point.
        points: Number of points.
        steps: Lowest and highest step; None unless every point has a step and they never decrease.
    """

    times: tuple[int, int]
    points: int
    steps: tuple[int, int] | None


class StoredRollups:
    """Reader of stored rollups. Thread-safe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def read(
        self, run: int, series: int, steps: int | None, track: Track, blocks: int, window: PointRange
    ) -> Blocks | tuple[Points, _Steps] | None:
        """Return the blocks of a series, or its points with their steps if these are few.

        Args:
            run: Key of the run.
            series: Key of the series.
            steps: Key of the process's step series; None if steps are not needed.
            track: Process and metric of the series.
            blocks: Minimum number of blocks to be worth reading.
            window: Range of points to read.

        Returns:
            Blocks or points, with steps if they are needed; None if too many of the points are not in stored rollups.

        Raises:
            UnorderedError: The range is by step, and steps are not integers or not in order of time.
        """
        full, partial = select_rollups(self._rollups(run, series, window), track, window)
        if sum(rollup.points for rollup in full) < blocks * BLOCK_POINTS:
            full, partial = [], [*full, *partial]
        others = self._points(run, series, window, partial)
        if others is not None and full:
            full, mixed = separate_rollups(full, others.times)
            if mixed:
                partial += mixed
                others = self._points(run, series, window, partial)
        stored = None if others is None else self._blocks(run, series, full)
        if others is None or stored is None:
            return None
        logged: _Steps = None
        if steps is None:
            unknown = np.zeros(len(others), np.int64)
            others = others[window.mask(track, others.times, unknown, unknown.astype(np.bool_))]
        else:
            others, logged = self._join_steps(run, steps, track, others, window, partial)
        if not full:
            return others, logged
        return join_rollups(full, stored, others, logged, by_step=window.by_step)

    def _rollups(self, run: int, series: int, window: PointRange) -> list[_Rollup]:
        """Return the rows that may represent points of a window, in order of time."""
        start = "" if window.start is None else f" AND last >= {window.start}"
        rows = self._connection.columns(
            "SELECT time, last, points, stepped, lowest_step, highest_step FROM rollup FINAL"
            f" WHERE run = {run} AND series = {series}{time_range(None, window.stop)}{start} ORDER BY time, last, points",
            _ROLLUP,
        )
        return [
            _Rollup((first, last), points, (lowest, highest) if stepped else None)
            for first, last, points, stepped, lowest, highest in rows.tolist()
        ]

    def _points(self, run: int, series: int, window: PointRange, rollups: Sequence[_Rollup]) -> Points | None:
        """Return the points of a series that are not dense, and those of the given rollups; None if there are many.

        The points have distinct and ascending times, and include all points between the times of a rollup.
        """
        if len(rollups) > _MOST_RANGES or sum(rollup.points for rollup in rollups) > _MOST_POINTS:
            return None
        where = f"WHERE run = {run} AND series = {series}{time_range(window.start, window.stop)}"
        conditions = [f"PREWHERE NOT dense {where}"]
        if rollups:
            conditions.append(f"{where} AND ({' OR '.join(f'{TIME} BETWEEN {a} AND {b}' for (a, b), *_ in rollups)})")
        parts = []
        for condition in conditions:
            points = read_points(
                self._connection,
                # Of two points with the same time, the one that arrived first is valid.
                f"FROM points {condition} ORDER BY time, precedence DESC LIMIT {_MOST_POINTS + 1}",
            )
            if len(points) > _MOST_POINTS:
                return None
            parts.append(points)
        return Points.concat(parts).distinct()

    def _join_steps(
        self, run: int, steps: int, track: Track, points: Points, window: PointRange, rollups: Sequence[_Rollup]
    ) -> tuple[Points, NDArray[np.int64]]:
        """Return the points in the window and their steps. The points of the given rollups are among them."""
        at = self._points(run, steps, window, rollups)
        found = Points.empty() if at is None else at
        missing = np.setdiff1d(points.times, found.times)
        found = Points.concat([found, read_steps(self._connection, run, steps, missing)]).distinct()
        if not found.integers.all():
            raise UnorderedError
        logged, stepped = steps_at(found, points.times)
        mask = window.mask(track, points.times, logged, stepped)
        return points[mask], logged[mask]

    def _blocks(self, run: int, series: int, rollups: Sequence[_Rollup]) -> list[Blocks] | None:
        """Return the blocks of rollups, in any order; None if retention has just removed some."""
        if not rollups:
            return []
        wanted = {(*rollup.times, rollup.points) for rollup in rollups}
        rows = memoryview(
            self._connection.raw(
                f"SELECT time, last, points, blocks FROM rollup FINAL WHERE run = {run} AND series = {series}"
                f"{time_range(rollups[0].times[0], rollups[-1].times[0] + 1)}"
            )
        )
        by_size: dict[int, list[bytes]] = defaultdict(list)
        position = 0
        while position < len(rows):
            first, last = rows[position : position + 16].cast("q").tolist()
            count = int.from_bytes(rows[position + 16 : position + _KEY_BYTES], "little")
            blob, position = read_string(rows, position + _KEY_BYTES)
            if (first, last, count) in wanted:
                by_size[len(blob)].append(blob)
        if sum(map(len, by_size.values())) != len(wanted):
            return None
        return [
            Blocks.decode(np.frombuffer(b"".join(blobs), "<i8").reshape(len(blobs), Blocks.ROWS, -1))
            for blobs in by_size.values()
        ]
