"""Rollups that a commit stores with its points.

A series with many points in one commit is dense there: the commit adds a row to the table `rollup`, with the blocks of
these points and their steps, and marks the points as dense. `stored_rollups` describes how charts use the rows.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.clickhouse.native import NativeBlock, encode_columns, encode_texts
from tensormeter.server.store.clickhouse.series_batch import (
    TIME_TYPE,
    Filled,
    SeriesBatch,
    StepsByProcess,
    arrival_columns,
)
from tensormeter.server.store.models.points import Points, steps_at
from tensormeter.server.store.models.rollup_blocks import Blocks

__all__ = ["ROLLUP_COLUMNS", "dense_points", "encode_rollups"]

ROLLUP_COLUMNS: Final = (
    *("run", "series", "time", "last", "points", "stepped", "lowest_step", "highest_step", "blocks"),
    *("precedence", "received"),
)

_DENSE: Final = 128
"""Minimum number of points of a dense series. A row takes about 150 bytes, and 128 points take about 1,000."""


def dense_points(batch: SeriesBatch) -> NDArray[np.bool_]:
    """Return whether the series of each point is dense, as an array of the same length as the points."""
    filled = batch.filled()
    return np.repeat(_is_dense(filled), filled.ends - filled.starts)


def encode_rollups(batch: SeriesBatch, steps: StepsByProcess, number: int, received: int) -> NativeBlock | None:
    """Encode rows for the table `rollup`, one for each dense series; None if there are none.

    Args:
        batch: Points of the commit.
        steps: Steps in the commit.
        number: Arrival number of the commit.
        received: Time of arrival in Unix seconds.
    """
    filled = batch.filled()
    dense = np.flatnonzero(_is_dense(filled))
    if not isinstance(batch.points, Points) or not len(dense):
        return None
    processes, of_series = batch.processes()
    series = filled.series[dense]
    ranges: list[tuple[int, int, int, int, int]] = []
    texts: list[bytes] = []
    for index, start, end in zip(series.tolist(), filled.starts[dense], filled.ends[dense], strict=True):
        points = batch.points[start:end]
        logged = _steps_of(points, steps.get(processes[of_series[index]]))
        lowest, highest = (0, 0) if logged is None else (int(logged[0]), int(logged[-1]))
        ranges.append((int(points.times[-1]), len(points), logged is not None, lowest, highest))
        texts.append(Blocks.of(points.times, points.floats(), logged).encode().tobytes())
    last, counts, stepped, lowest_step, highest_step = np.array(ranges, np.int64).T
    return encode_columns(
        len(series),
        [
            ("run", "UInt64", batch.runs[series]),
            ("series", "UInt64", batch.keys[series]),
            ("time", TIME_TYPE, batch.points.times[filled.starts[dense]]),
            ("last", "Int64", last),
            ("points", "UInt32", counts.astype(np.uint32)),
            ("stepped", "UInt8", stepped.astype(np.uint8)),
            ("lowest_step", "Int64", lowest_step),
            ("highest_step", "Int64", highest_step),
            ("blocks", "String", encode_texts(texts)),
            *arrival_columns(len(series), number, received),
        ],
    )


def _is_dense(filled: Filled) -> NDArray[np.bool_]:
    return filled.ends - filled.starts >= _DENSE


def _steps_of(points: Points, steps: Points | None) -> NDArray[np.int64] | None:
    """Return the steps of points; None unless each point has one and they never decrease."""
    if steps is None:
        return None
    logged, stepped = steps_at(steps, points.times)
    return logged if stepped.all() and (logged[1:] >= logged[:-1]).all() else None
