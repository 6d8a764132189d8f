"""Statistics of a metric over a run's processes, computed on the server so that processes need not communicate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.query.points.lines import Line
from tensormeter.server.query.points.variant import Variant
from tensormeter.server.store import Points

__all__ = ["RankStatistics", "rank_statistics", "statistics_of"]

_MAX_CELLS: Final = 2_000_000
"""Maximum number of cells, one for each process and bucket. Sums then take 64 MB, and medians about as much."""

_MERGE_SIZE: Final = 10_000
"""Minimum number of x values to collect before merging them."""


@dataclass(frozen=True, eq=False)
class RankStatistics:
    """Minimum, median and maximum over processes at each x, for one variant of a metric, as arrays of shape (n,).

    NaN counts as a missing value. If no process has a value at an x, the statistics are NaN and the process IDs are "".

    Attributes:
        lowest: ID of the process with the lowest value at each x.
        highest: ID of the process with the highest value at each x.
        processes: Number of processes.
        others: Other variants of the metric, which the statistics do not include.
    """

    x: NDArray[np.float64]
    minimum: NDArray[np.float64]
    median: NDArray[np.float64]
    maximum: NDArray[np.float64]
    lowest: Sequence[str]
    highest: Sequence[str]
    processes: int
    variant: Variant | None = None
    others: Sequence[Variant] = ()


def rank_statistics(lines: Sequence[Line], max_points: int, check: Check = no_check) -> RankStatistics:
    """Compute statistics at every x that occurs in any process.

    If there are more than `max_points` x values, neighboring x values are merged. A merged x has the minimum and maximum of
    all its values, and the median of its processes' means.
    """
    processes = sorted({line.series.process for line in lines})
    if not lines:
        empty = np.empty(0)
        return RankStatistics(empty, empty, empty, empty, [], [], 0)
    x = _every_x(lines, check)
    buckets = min(len(x), max_points) if max_points else len(x)
    # The arrays below have one cell for each process and bucket.
    buckets = max(min(buckets, _MAX_CELLS // len(processes)), 1)
    size = -(-len(x) // buckets)
    edges = x[::size]
    shape = len(processes), len(edges)
    rows = {process: row for row, process in enumerate(processes)}
    low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
    total, count = np.zeros(shape), np.zeros(shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        for line in lines:
            check()
            assert isinstance(line.series.points, Points)
            row, values = rows[line.series.process], line.series.points.floats()
            present = ~np.isnan(values)
            column = np.searchsorted(edges, line.x[present], side="right") - 1
            values = values[present]
            # x is ascending, so the columns are too, and points in the same bucket are adjacent.
            columns, first = np.unique(column, return_index=True)
            if len(columns):
                low[row, columns] = np.minimum(low[row, columns], np.minimum.reduceat(values, first))
                high[row, columns] = np.maximum(high[row, columns], np.maximum.reduceat(values, first))
                total[row, columns] += np.add.reduceat(values, first)
                count[row, columns] += np.diff(np.append(first, len(values)))
    return statistics_of(processes, edges, (low, high, total, count))


def _every_x(lines: Sequence[Line], check: Check) -> NDArray[np.float64]:
    """Return the distinct x values of all processes, ascending."""
    x = lines[0].x[:1]
    unmerged: list[NDArray[np.float64]] = []
    size = 0
    for line in lines:
        check()
        if not np.array_equal(line.x, x):
            unmerged.append(line.x)
            size += len(line.x)
        if size > max(_MERGE_SIZE, len(x)):  # merging lines one by one would take quadratic time
            x, unmerged, size = np.unique(np.concatenate([x, *unmerged])), [], 0
    return np.unique(np.concatenate([x, *unmerged])) if unmerged else x


def statistics_of(
    processes: Sequence[str], x: NDArray[np.float64], columns: Sequence[NDArray[np.float64]]
) -> RankStatistics:
    """Compute statistics from the aggregates of processes.

    Args:
        processes: IDs of the processes.
        x: X values, shape (n,).
        columns: Minimum, maximum, sum and count of each process's values at each x, each of shape (processes, n).
    """
    low, high, total, count = columns
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(count > 0, total / count, np.nan)
    has_value: NDArray[np.bool_] = np.asarray(count.any(axis=0))
    lowest, highest = low.argmin(axis=0), high.argmax(axis=0)
    median = np.full(len(x), np.nan)
    if has_value.any():
        median[has_value] = np.nanmedian(means[:, has_value], axis=0)
    return RankStatistics(
        x,
        np.where(has_value, low.min(axis=0), np.nan),
        median,
        np.where(has_value, high.max(axis=0), np.nan),
        [processes[i] if known else "" for i, known in zip(lowest.tolist(), has_value.tolist(), strict=True)],
        [processes[i] if known else "" for i, known in zip(highest.tolist(), has_value.tolist(), strict=True)],
        len(processes),
    )
