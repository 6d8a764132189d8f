"""Fewer points that look the same: no peak, no gap and no NaN is lost."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["choose_evenly", "sample"]


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


def choose_evenly(n: int, max_points: int) -> NDArray[np.intp]:
    """Indices of at most `max_points` of n, the first and the last among them."""
    if max_points == 0 or n <= max_points:
        return np.arange(n)
    return np.unique(np.linspace(0, n - 1, max(max_points, 2)).round().astype(np.intp))
