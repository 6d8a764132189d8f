"""Blocks of a long series that ClickHouse computes from all of its points, if stored rollups contain too few of them."""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.clickhouse.connection import Connection, numbers
from tensormeter.server.store.clickhouse.point_reader import TIME, time_range
from tensormeter.server.store.clickhouse.series_points import read_steps
from tensormeter.server.store.models.point_range import PointRange, Track
from tensormeter.server.store.models.rollup_blocks import FIRST, LAST, Blocks
from tensormeter.server.store.rules.rollup_joining import UnorderedError

__all__ = ["ComputedRollups"]

_BLOCK: Final = np.dtype(
    [
        *(("bucket", "<i8"), ("count", "<u8"), ("missing", "<u8"), ("missing_time", "<i8")),
        *(("first_time", "<i8"), ("first", "<f8"), ("last_time", "<i8"), ("last", "<f8")),
        *(("lowest_time", "<i8"), ("lowest", "<f8"), ("highest_time", "<i8"), ("highest", "<f8")),
    ]
)
_COLUMNS: Final = (
    f"count(), countIf(isNaN(value)), minIf({TIME}, isNaN(value)),"
    f" min({TIME}), argMin(value, time), max({TIME}), argMax(value, time),"
    f" argMinIf({TIME}, value, NOT isNaN(value)), minIf(value, NOT isNaN(value)),"
    f" argMaxIf({TIME}, value, NOT isNaN(value)), maxIf(value, NOT isNaN(value))"
)

_STEPS: Final = np.dtype(
    [
        *(("bucket", "<i8"), ("count", "<u8"), ("integers", "<u8")),
        *(("first", "<i8"), ("last", "<i8"), ("lowest", "<i8"), ("highest", "<i8")),
    ]
)
_STEP_COLUMNS: Final = "count(), countIf(integer), argMin(word, time), argMax(word, time), min(word), max(word)"

_PARTS: Final = 4
"""Number of parts for each block, if parts have equal durations."""

_EXTREMES: Final = np.dtype([("count", "<u8"), ("low", "<i8"), ("high", "<i8")])


class ComputedRollups:
    """Reader of blocks that ClickHouse computes. They contain nearly equal numbers of points. Thread-safe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def read(
        self, run: int, series: int, steps: int | None, track: Track, blocks: int, window: PointRange
    ) -> Blocks | None:
        """Return the blocks of a series; None if no point is in the window.

        Args:
            run: Key of the run.
            series: Key of the series.
            steps: Key of the process's step series; None if steps are not needed.
            track: Process and metric of the series.
            blocks: Number of blocks.
            window: Range of points to read.

        Raises:
            UnorderedError: The range depends on steps, and steps are missing or not in time order.
        """
        if steps is None:
            return self._blocks(run, series, window, blocks)
        return self._stepped_blocks(run, series, steps, track, blocks, window)

    def _stepped_blocks(
        self, run: int, series: int, steps: int, track: Track, blocks: int, window: PointRange
    ) -> Blocks | None:
        """Return the blocks of a series with their steps; None if no point is in the window."""
        bounded = self._without_steps(run, series, steps, track, window)
        divided = None if bounded is None else self._divide(run, series, bounded, blocks)
        if bounded is None or divided is None:
            return None
        bounded, bucket, parts = divided
        rows = self._grouped(run, steps, bounded, bucket, _STEP_COLUMNS, _STEPS)
        ascending = (rows["first"] == rows["lowest"]).all() and (rows["last"] == rows["highest"]).all()
        ascending = ascending and (rows["highest"][:-1] <= rows["lowest"][1:]).all()
        is_inside = (window.first_step is None or rows["lowest"].min(initial=1 << 62) >= window.first_step) and (
            window.last_step is None or rows["highest"].max(initial=-(1 << 62)) < window.last_step
        )
        if not ascending or not is_inside or (rows["integers"] != rows["count"]).any():
            raise UnorderedError
        if rows["count"].tolist() != parts.counts.tolist():  # some points have no step
            raise UnorderedError
        parts.steps[:, FIRST], parts.steps[:, LAST] = rows["first"], rows["last"]
        found = parts.joined(_even_edges(parts.counts, blocks))
        self._fill_steps(run, steps, found)
        return found

    def _fill_steps(self, run: int, steps: int, blocks: Blocks) -> None:
        """Set the steps of the points kept from each block. Those of its first and last point are known."""
        ends = [FIRST, LAST]
        found = read_steps(self._connection, run, steps, np.setdiff1d(blocks.times, blocks.times[:, ends]))
        times, first = np.unique([*blocks.times[:, ends].flat, *found.times], return_index=True)
        index = np.minimum(np.searchsorted(times, blocks.times), len(times) - 1)
        if (times[index] != blocks.times).any():
            raise UnorderedError
        blocks.steps[:] = np.array([*blocks.steps[:, ends].flat, *found.words])[first][index]

    def _without_steps(self, run: int, series: int, steps: int, track: Track, window: PointRange) -> PointRange | None:
        """Return a window of times that selects the same points, if steps are in time order; None if it selects none."""
        start, stop = window.start, window.stop
        limits = (">=", window.first_step), ("<", window.last_step)
        conditions = [f"word {sign} {_whole(limit)}" for sign, limit in limits if limit is not None]
        if conditions:
            count, low, high = self._extremes(run, steps, window, " AND ".join(conditions))
            if not count:
                return None
            start = low if start is None else max(start, low)
            stop = high + 1 if stop is None else min(stop, high + 1)
        for step, began in window.begins.get(track, ()):
            shadowed, low, _ = self._extremes(run, steps, window, f"word >= {step} AND {TIME} < {began}")
            if not shadowed:
                continue
            after, *_ = self._extremes(run, series, window, f"{TIME} >= {began}")
            if after:
                raise UnorderedError
            stop = low if stop is None else min(stop, low)
        return None if start is not None and stop is not None and start >= stop else PointRange(start, stop)

    def _extremes(self, run: int, series: int, window: PointRange, condition: str) -> tuple[int, int, int]:
        """Return the number of a series' points in the window's times that meet a condition, and their extreme times.

        Repeated points may count twice.
        """
        (row,) = self._connection.columns(
            f"SELECT count(), min({TIME}), max({TIME}) FROM points"
            f" WHERE run = {run} AND series = {series}{time_range(window.start, window.stop)} AND {condition}",
            _EXTREMES,
        ).tolist()
        return row[0], row[1], row[2]

    def _blocks(self, run: int, series: int, window: PointRange, blocks: int) -> Blocks | None:
        """Return the blocks of a series between two times; None if it has no points there."""
        divided = self._divide(run, series, window, blocks)
        if divided is None:
            return None
        *_, parts = divided
        return parts.joined(_even_edges(parts.counts, blocks))

    def _divide(self, run: int, series: int, window: PointRange, blocks: int) -> tuple[PointRange, str, Blocks] | None:
        """Divide the points of a series into parts that can be joined to blocks with nearly equal numbers of points.

        Returns:
            The range of times that was read, the expression that assigns times to parts, and the parts; None if the
            series has no points in the window.
        """
        ends = self._ends(run, series, window)
        if ends is None:
            return None
        first, last = ends
        window = PointRange(first, last + 1)  # points that arrive meanwhile could have steps in only one of two reads
        # Parts of equal duration need one read of the points, but in a series with a long pause, few have points.
        width = (last - first) // (_PARTS * blocks) + 1
        bucket = f"intDiv({TIME} - {first}, {width})"
        parts = self._parts(run, series, window, bucket)
        if len(parts) and parts.counts.max() * blocks > parts.counts.sum():
            bucket = f"roundDown({TIME}, [{numbers(self._quantiles(run, series, blocks, window))}])"
            parts = self._parts(run, series, window, bucket)
        return (window, bucket, parts) if len(parts) else None

    def _ends(self, run: int, series: int, window: PointRange) -> tuple[int, int] | None:
        """Return the first and last time of a series in a window; None if it has no points there."""
        where = f"FROM points WHERE run = {run} AND series = {series}{time_range(window.start, window.stop)}"
        orders = "run, series, time", "run DESC, series DESC, time DESC"  # as the table is sorted, so little is read
        first, last = (self._connection.rows(f"SELECT {TIME} {where} ORDER BY {order} LIMIT 1") for order in orders)
        return (first[0][0], last[0][0]) if first and last else None

    def _quantiles(self, run: int, series: int, blocks: int, window: PointRange) -> Sequence[int]:
        """Return times that divide the points of a series into blocks with nearly equal numbers of points."""
        levels = ", ".join(f"{level / blocks:.6f}" for level in range(blocks))
        (row,) = self._connection.rows(
            f"SELECT quantiles({levels})({TIME}) FROM points WHERE run = {run} AND series = {series}{time_range(window.start, window.stop)}"
        )
        return sorted({int(bound) for bound in row[0]})

    def _parts(self, run: int, series: int, window: PointRange, bucket: str) -> Blocks:
        """Return a block for each bucket of a series between two times, without steps."""
        rows = self._grouped(run, series, window, bucket, _COLUMNS, _BLOCK)
        has_missing, is_missing = rows["missing"] > 0, rows["missing"] == rows["count"]
        times, values = [rows["first_time"], rows["last_time"]], [rows["first"], rows["last"]]
        for name in ("lowest", "highest"):
            times.append(np.where(is_missing, rows["first_time"], rows[f"{name}_time"]))
            values.append(np.where(is_missing, np.nan, rows[name]))
        times.append(np.where(has_missing, rows["missing_time"], rows["first_time"]))
        values.append(np.where(has_missing, np.nan, rows["first"]))
        picked = np.stack(times, axis=1)
        return Blocks(rows["count"].astype(np.int64), picked, np.stack(values, axis=1), np.zeros_like(picked))

    def _grouped(
        self, run: int, series: int, window: PointRange, bucket: str, columns: str, dtype: np.dtype[Any]
    ) -> NDArray[Any]:
        return self._connection.columns(
            f"SELECT toInt64({bucket}) AS bucket, {columns} FROM points FINAL"
            f" WHERE run = {run} AND series = {series}{time_range(window.start, window.stop)} GROUP BY bucket ORDER BY bucket",
            dtype,
        )


def _even_edges(counts: NDArray[np.int64], blocks: int) -> NDArray[np.intp]:
    """Divide parts with these numbers of points into blocks with nearly equal numbers of points.

    Returns:
        Index of the first part of each block, at most `blocks`.
    """
    before = np.cumsum(counts) - counts
    return np.flatnonzero(np.diff(before * blocks // int(counts.sum()), prepend=-1))


def _whole(step: float) -> int:
    """Return the lowest integer step that is not below a step."""
    return math.ceil(min(max(step, -(2.0**63)), 2.0**63))
