"""Fewer points that look the same: no peak, no gap and no NaN is lost."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.models.rollup_blocks import MISSING, Blocks

__all__ = ["blocks_needed", "choose_evenly", "sample", "sample_blocks"]

_BLOCKS_IN_BUCKET: Final = 2
"""Blocks that a bucket is made of at least, where buckets are made of blocks: two or three, so a series of half a million is read in blocks."""


def sample(values: NDArray[np.float64], max_points: int) -> NDArray[np.intp]:
    """Which points to keep of a series in order of x.

    The points are cut into buckets of equally many; of each the first, the last, the lowest and the highest are kept,
    and one NaN, if there is any. So the lowest and the highest of all are kept, wherever they are.

    Args:
        values: float64, shape (n,).
        max_points: How many to keep at most, at least 4; 0: all.

    Returns:
        Indices, ascending, shape (m,), m <= max_points unless that is below 5 and there are NaN.
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
    # The last point again and again: it is kept anyway.
    grid = np.concatenate((values, np.full(padding, values[-1]))).reshape(buckets, size)
    starts = np.arange(buckets) * size
    kept = [starts, np.minimum(starts + size, n) - 1]
    if any_missing:
        gaps = np.concatenate((missing, np.zeros(padding, np.bool_))).reshape(buckets, size)
        kept.append((starts + gaps.argmax(axis=1))[gaps.any(axis=1)])
        low, high = np.where(np.isnan(grid), np.inf, grid), np.where(np.isnan(grid), -np.inf, grid)
    else:
        low = high = grid
    kept.append(starts + low.argmin(axis=1))
    kept.append(starts + high.argmax(axis=1))
    return np.unique(np.minimum(np.concatenate(kept), n - 1))


def blocks_needed(max_points: int) -> int:
    """How many blocks a series needs for `sample_blocks` to make good buckets of them."""
    return _BLOCKS_IN_BUCKET * max(max_points // 4, 1)


def sample_blocks(blocks: Blocks, max_points: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Which points to keep of a series in order of x, as `sample` does; but buckets are whole blocks, of about equally many points.

    Args:
        blocks: In order of x, as are the points of each.
        max_points: How many to keep at most, at least 4.

    Returns:
        Rows and columns of what is kept in the arrays of `blocks`, in order of x, shapes (m,).
    """
    any_missing = bool(np.isnan(blocks.values[:, MISSING]).any())
    buckets = max(max_points // (5 if any_missing else 4), 1)
    before = np.cumsum(blocks.counts) - blocks.counts
    bucket = before * buckets // int(blocks.counts.sum())
    edges = np.flatnonzero(np.diff(bucket, prepend=-1))
    rows, columns = blocks.picks(edges)
    rows, columns = rows.reshape(-1), columns.reshape(-1)
    times = blocks.times[rows, columns]
    order = np.lexsort((times, rows))
    rows, columns, times = rows[order], columns[order], times[order]
    # Within a block a time is a point: the lowest may be the first, and so on.
    fresh = np.concatenate(([True], (rows[1:] != rows[:-1]) | (times[1:] != times[:-1])))
    return rows[fresh], columns[fresh]


def choose_evenly(n: int, max_points: int) -> NDArray[np.intp]:
    """Indices of at most `max_points` of n, the first and the last among them."""
    if max_points == 0 or n <= max_points:
        return np.arange(n)
    return np.unique(np.linspace(0, n - 1, max(max_points, 2)).round().astype(np.intp))
