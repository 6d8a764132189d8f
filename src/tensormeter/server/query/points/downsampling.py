"""Downsampling that preserves the shape of a line: extremes and NaN values stay visible."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.models.rollup_blocks import MISSING, PICKS, Blocks

__all__ = ["blocks_needed", "choose_evenly", "sample", "sample_blocks"]

_BLOCKS_IN_BUCKET: Final = 2
"""Minimum number of blocks per bucket.

With 2, a series is read as blocks if it has at least about 256 times as many points as the chart.
"""


def sample(values: NDArray[np.float64], max_points: int) -> NDArray[np.intp]:
    """Select the points of a series to show in a chart.

    The points are divided into buckets of equal size. Each bucket keeps its first, last, lowest and highest points, and
    one NaN if it contains any and max_points is at least 5. The lowest and highest points of the series are therefore
    always kept.

    Args:
        values: Values in order of x, float64, shape (n,).
        max_points: Maximum number of points to keep, at least 4; 0 for all points.

    Returns:
        Ascending indices of the points to keep, shape (m,). m does not exceed max_points unless max_points is 0.
    """
    n = len(values)
    if max_points == 0 or n <= max_points:
        return np.arange(n)
    missing = np.isnan(values)
    any_missing = bool(missing.any())
    buckets = max(max_points // (5 if any_missing else 4), 1)
    size = -(-n // buckets)
    buckets = -(-n // size)
    padding = buckets * size - n
    # Pad the last bucket with its last point, which is kept anyway.
    grid = np.concatenate((values, np.full(padding, values[-1]))).reshape(buckets, size)
    starts = np.arange(buckets) * size
    indices = [starts, np.minimum(starts + size, n) - 1]
    if any_missing:
        if max_points >= PICKS:
            gaps = np.concatenate((missing, np.zeros(padding, np.bool_))).reshape(buckets, size)
            indices.append((starts + gaps.argmax(axis=1))[gaps.any(axis=1)])
        low, high = np.where(np.isnan(grid), np.inf, grid), np.where(np.isnan(grid), -np.inf, grid)
    else:
        low = high = grid
    indices.append(starts + low.argmin(axis=1))
    indices.append(starts + high.argmax(axis=1))
    return np.unique(np.minimum(np.concatenate(indices), n - 1))


def blocks_needed(max_points: int) -> int:
    """Return the number of blocks that `sample_blocks` needs for buckets of similar size."""
    return _BLOCKS_IN_BUCKET * max(max_points // 4, 1)


def sample_blocks(blocks: Blocks, max_points: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Select points as `sample` does, but with buckets that consist of whole blocks and therefore vary in size.

    Args:
        blocks: Blocks in order of x; the points within each block are also in order of x.
        max_points: Maximum number of points to keep, at least 4.

    Returns:
        Row and column indices of the selected points in the arrays of `blocks`, in order of x, each of shape (m,).
    """
    any_missing = bool(np.isnan(blocks.values[:, MISSING]).any())
    buckets = max(max_points // (5 if any_missing else 4), 1)
    before = np.cumsum(blocks.counts) - blocks.counts
    bucket = before * buckets // int(blocks.counts.sum())
    edges = np.flatnonzero(np.diff(bucket, prepend=-1))
    kept = PICKS if max_points >= PICKS else MISSING  # the NaN is the last column
    rows, columns = (index[:, :kept].reshape(-1) for index in blocks.picks(edges))
    times = blocks.times[rows, columns]
    order = np.lexsort((times, rows))
    rows, columns, times = rows[order], columns[order], times[order]
    # Remove points selected twice, for example as first and lowest. Within a block, the time identifies a point.
    distinct = np.concatenate(([True], (rows[1:] != rows[:-1]) | (times[1:] != times[:-1])))
    return rows[distinct], columns[distinct]


def choose_evenly(n: int, max_points: int) -> NDArray[np.intp]:
    """Return up to `max_points` evenly spaced indices below n, including the first and last; 0 returns all."""
    if max_points == 0 or n <= max_points:
        return np.arange(n)
    return np.unique(np.linspace(0, n - 1, max(max_points, 2)).round().astype(np.intp))
