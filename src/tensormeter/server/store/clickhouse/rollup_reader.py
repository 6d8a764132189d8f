"""Blocks of long series, which ClickHouse computes from their points when a chart is requested."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.server.store.clickhouse.connection import Connection, numbers
from tensormeter.server.store.clickhouse.point_reader import PointReader, time_range
from tensormeter.server.store.models.metric_kind import parse_kind
from tensormeter.server.store.models.point_range import PointRange
from tensormeter.server.store.models.rollup_blocks import BLOCK_POINTS, FIRST, LAST, Blocks
from tensormeter.server.store.models.series import NO_GAPS, Selection, Series, SeriesRollup
from tensormeter.server.store.rules.limits import check_limit
from tensormeter.server.store.rules.process_rollups import join_steps

__all__ = ["RollupReader"]

_TIME: Final = "toUnixTimestamp64Nano(time)"

_BLOCK: Final = np.dtype(
    [
        *(("bucket", "<i8"), ("count", "<u8"), ("missing", "<u8"), ("missing_time", "<i8")),
        *(("first_time", "<i8"), ("first", "<f8"), ("last_time", "<i8"), ("last", "<f8")),
        *(("lowest_time", "<i8"), ("lowest", "<f8"), ("highest_time", "<i8"), ("highest", "<f8")),
    ]
)
_COLUMNS: Final = (
    f"count(), countIf(isNaN(value)), minIf({_TIME}, isNaN(value)),"
    f" min({_TIME}), argMin(value, time), max({_TIME}), argMax(value, time),"
    f" argMinIf({_TIME}, value, NOT isNaN(value)), minIf(value, NOT isNaN(value)),"
    f" argMaxIf({_TIME}, value, NOT isNaN(value)), maxIf(value, NOT isNaN(value))"
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

_STEP: Final = np.dtype([("time", "<i8"), ("step", "<i8")])
_EXTREMES: Final = np.dtype([("count", "<u8"), ("low", "<i8"), ("high", "<i8")])


class _UnorderedError(Exception):
    """Blocks cannot be used, because a point has no step, or because steps are not integers or not in time order."""


class RollupReader:
    """Reader of long series as blocks, and of other series as points. Thread-safe."""

    def __init__(self, connection: Connection, points: PointReader) -> None:
        self._connection = connection
        self._points = points

    def read(self, run: int, selection: Selection, window: PointRange, blocks: int) -> list[SeriesRollup] | None:
        """See `Store.read_rollups`. Blocks contain nearly equal numbers of points. Raises TooManyPointsError."""
        metrics = set(selection.metrics)
        bounded = replace(selection, start=window.start, stop=window.stop)
        rows = self._points.series(run, replace(bounded, metrics=[*metrics | {STEP_METRIC}]))
        wanted = [row for row in rows if row[2] in metrics]
        counts = self._points.counts_between(run, [row[0] for row in rows], bounded)
        least = blocks * BLOCK_POINTS
        long = [row for row in wanted if counts[row[0]] >= least]
        of_process: dict[str, list[int]] = defaultdict(list)
        for row in rows:
            if row[2] == STEP_METRIC:
                of_process[row[1]].append(row[0])
        if any(len(of_process[row[1]]) > 1 for row in wanted if window.needs_steps(row[1])):
            return None
        steps_of = {row[1]: key for row in wanted if window.needs_steps(row[1]) for key in of_process[row[1]]}
        if not long and all(counts[key] < least for key in steps_of.values()):
            return None
        short = [row for row in wanted if counts[row[0]] < least]
        total = sum(counts[row[0]] * (2 if row[1] in steps_of else 1) for row in short)
        gaps = self._points.gaps(run, [row[0] for row in wanted], bounded, total) if selection.gaps else {}
        check_limit(total + sum(map(len, gaps.values())), selection.limit, metrics)
        try:
            rollups = self._read_short(run, short, steps_of, bounded, window)
            for row in long:
                selection.check()
                key, process = row[0], row[1]
                found = None
                if process in steps_of:
                    found = self._stepped_blocks(run, key, steps_of[process], process, blocks, window)
                elif not window.by_step:
                    found = self._blocks(run, key, window, blocks)
                if found is not None:
                    rollups[key] = _rollup(row, found)
        except _UnorderedError:
            return None
        return [replace(rollups[row[0]], gaps=gaps.get(row[0], NO_GAPS)) for row in wanted if row[0] in rollups]

    def _read_short(
        self,
        run: int,
        rows: Sequence[Sequence[Any]],
        steps_of: Mapping[str, int],
        selection: Selection,
        window: PointRange,
    ) -> dict[int, SeriesRollup]:
        """Read short series as points, and only the steps at their times."""
        if not rows:
            return {}
        where = f"run = {run} AND series IN ({numbers([row[0] for row in rows])}){_bounds(window)}"
        found = self._points.select(rows, f"FROM points FINAL WHERE {where} ORDER BY series, time", selection)
        stepped = {row[0]: steps_of[row[1]] for row in rows if row[1] in steps_of}
        steps: Mapping[int, Series] = {}
        if stepped:
            keys, step_keys = zip(*stepped.items(), strict=True)
            to_steps = f"transform(series, {[*keys]}, {[*step_keys]}, toUInt64(0))"
            described = [(key, process, STEP_METRIC, "gauge", "{}", "", "") for process, key in steps_of.items()]
            at = f"(series, time) GLOBAL IN (SELECT {to_steps}, time FROM points WHERE {where})"
            of_steps = f"run = {run} AND series IN ({numbers(step_keys)}) AND {at}"
            steps = self._points.select(
                described, f"FROM points FINAL WHERE {of_steps} ORDER BY series, time", selection
            )
        rollups: dict[int, SeriesRollup] = {}
        for key, series in found.items():
            own = steps.get(stepped.get(key, 0))
            joined = join_steps(series.process, [series], [own] if own else [], window).series
            if joined is None:
                raise _UnorderedError
            rollups.update((key, rollup) for rollup in joined)
        return rollups

    def _stepped_blocks(
        self, run: int, series: int, steps: int, process: str, blocks: int, window: PointRange
    ) -> Blocks | None:
        """Return the blocks of a series with their steps; None if no point is in the window."""
        bounded = self._without_steps(run, series, steps, process, window)
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
            raise _UnorderedError
        if rows["count"].tolist() != parts.counts.tolist():  # some points have no step
            raise _UnorderedError
        parts.steps[:, FIRST], parts.steps[:, LAST] = rows["first"], rows["last"]
        found = parts.joined(_even_edges(parts.counts, blocks))
        self._fill_steps(run, steps, found)
        return found

    def _fill_steps(self, run: int, steps: int, blocks: Blocks) -> None:
        """Set the steps of the points kept from each block. Those of its first and last point are known."""
        ends = [FIRST, LAST]
        found = self._steps_at(run, steps, np.setdiff1d(blocks.times, blocks.times[:, ends]))
        times, first = np.unique([*blocks.times[:, ends].flat, *found["time"]], return_index=True)
        index = np.minimum(np.searchsorted(times, blocks.times), len(times) - 1)
        if (times[index] != blocks.times).any():
            raise _UnorderedError
        blocks.steps[:] = np.array([*blocks.steps[:, ends].flat, *found["step"]])[first][index]

    def _steps_at(self, run: int, steps: int, times: NDArray[np.int64]) -> NDArray[Any]:
        """Return the steps at the given times, where there are any."""
        if not len(times):
            return np.empty(0, _STEP)
        return self._connection.columns(
            f"SELECT {_TIME}, word FROM points FINAL WHERE run = {run} AND series = {steps} AND time GLOBAL IN"
            f" (SELECT fromUnixTimestamp64Nano(arrayJoin([{numbers(times.tolist())}]), 'UTC')) ORDER BY time",
            _STEP,
        )

    def _without_steps(self, run: int, series: int, steps: int, process: str, window: PointRange) -> PointRange | None:
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
        for step, began in window.begins.get(process, ()):
            shadowed, low, _ = self._extremes(run, steps, window, f"word >= {step} AND {_TIME} < {began}")
            if not shadowed:
                continue
            after, *_ = self._extremes(run, series, window, f"{_TIME} >= {began}")
            if after:
                raise _UnorderedError
            stop = low if stop is None else min(stop, low)
        return None if start is not None and stop is not None and start >= stop else PointRange(start, stop)

    def _extremes(self, run: int, series: int, window: PointRange, condition: str) -> tuple[int, int, int]:
        """Return the number of a series' points in the window's times that meet a condition, and their extreme times.

        Repeated points may count twice.
        """
        (row,) = self._connection.columns(
            f"SELECT count(), min({_TIME}), max({_TIME}) FROM points"
            f" WHERE run = {run} AND series = {series}{_bounds(window)} AND {condition}",
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
        bucket = f"intDiv({_TIME} - {first}, {width})"
        parts = self._parts(run, series, window, bucket)
        if len(parts) and parts.counts.max() * blocks > parts.counts.sum():
            bucket = f"roundDown({_TIME}, [{numbers(self._quantiles(run, series, blocks, window))}])"
            parts = self._parts(run, series, window, bucket)
        return (window, bucket, parts) if len(parts) else None

    def _ends(self, run: int, series: int, window: PointRange) -> tuple[int, int] | None:
        """Return the first and last time of a series in a window; None if it has no points there."""
        where = f"FROM points WHERE run = {run} AND series = {series}{_bounds(window)}"
        orders = "run, series, time", "run DESC, series DESC, time DESC"  # as the table is sorted, so little is read
        first, last = (self._connection.rows(f"SELECT {_TIME} {where} ORDER BY {order} LIMIT 1") for order in orders)
        return (first[0][0], last[0][0]) if first and last else None

    def _quantiles(self, run: int, series: int, blocks: int, window: PointRange) -> Sequence[int]:
        """Return times that divide the points of a series into blocks with nearly equal numbers of points."""
        levels = ", ".join(f"{level / blocks:.6f}" for level in range(blocks))
        (row,) = self._connection.rows(
            f"SELECT quantiles({levels})({_TIME}) FROM points WHERE run = {run} AND series = {series}{_bounds(window)}"
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
            f" WHERE run = {run} AND series = {series}{_bounds(window)} GROUP BY bucket ORDER BY bucket",
            dtype,
        )


def _even_edges(counts: NDArray[np.int64], blocks: int) -> NDArray[np.intp]:
    """Divide parts with these numbers of points into blocks with nearly equal numbers of points.

    Returns:
        Index of the first part of each block, at most `blocks`.
    """
    before = np.cumsum(counts) - counts
    return np.flatnonzero(np.diff(before * blocks // int(counts.sum()), prepend=-1))


def _bounds(window: PointRange) -> str:
    return time_range(window.start, window.stop)


def _whole(step: float) -> int:
    """Return the lowest integer step that is not below a step."""
    return math.ceil(min(max(step, -(2.0**63)), 2.0**63))


def _rollup(row: Sequence[Any], blocks: Blocks) -> SeriesRollup:
    _, process, metric, kind, attributes, scope, unit = row
    return SeriesRollup(process, metric, parse_kind(kind), json.loads(attributes), None, None, blocks, scope, unit)
