"""Conversion of exponential histograms to explicit buckets (OpenTelemetry metrics data model, "ExponentialHistogram")."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Side", "explicit_buckets", "increasing"]

Side = tuple[int, NDArray[np.uint64]]
"""Buckets of either positive or negative values: the index of the first bucket, and the bucket counts."""

_TINY: Final = float(np.nextafter(0.0, 1.0))
_FAR: Final = 2000


def explicit_buckets(
    scale: int,
    zero_count: int,
    zero_threshold: float,
    positive: Side,
    negative: Side,
    *,
    max_buckets: int | None = None,
) -> tuple[list[float], list[int]]:
    """Convert an exponential histogram to explicit bounds and counts.

    Values that count as zero get a separate bucket, from minus the zero threshold to the zero threshold. If the threshold is 0,
    this bucket contains only 0. A bucket that overlaps the zero bucket is shortened to begin at the threshold.

    Args:
        scale: Scale of the histogram. Bucket i of a side holds magnitudes in ``(base ** i, base ** (i + 1)]``, where base is
            ``2 ** 2 ** -scale``.
        zero_count: Number of values whose magnitude does not exceed the threshold.
        zero_threshold: Zero threshold that the sender specified. Negative numbers and NaN are treated as 0.
        positive: Buckets of positive values.
        negative: Buckets of the magnitudes of negative values.
        max_buckets: Maximum number of positive and negative buckets together, at least 2, or None for no limit. If there are
            more, pairs of adjacent buckets are merged. The counts stay exact.

    Returns:
        Finite, increasing bounds, and the counts. There is one more count than bounds. Bucket i is
        ``(bounds[i - 1], bounds[i]]``. The first bucket has no lower bound, and the last bucket has no upper bound. Both lists
        are empty if there are no values.
    """
    if not (zero_count or positive[1].any() or negative[1].any()):
        return [], []
    while max_buckets is not None and len(positive[1]) + len(negative[1]) > max(max_buckets, 2):
        positive, negative, scale = _halve(*positive), _halve(*negative), scale - 1
    threshold = zero_threshold if zero_threshold > 0 else 0.0
    # Bounds must increase, so a bucket that contains only 0 starts at the largest number below 0.
    zero_low, zero_high = (-threshold, threshold) if threshold else (-_TINY, 0.0)
    up, up_counts, up_zeros = _beyond(*positive, scale, zero_high)
    down, down_counts, down_zeros = _beyond(*negative, scale, -zero_low)
    zeros = zero_count + up_zeros + down_zeros
    bounds = [-edge for edge in reversed(down)]
    counts = [0, *reversed(down_counts)]
    if down:
        counts.append(0)
    if zeros:
        bounds += [zero_low, zero_high]
        counts += [zeros, 0]
    bounds += up
    counts += up_counts
    if up:
        counts.append(0)
    return increasing(bounds, counts)


def _beyond(first: int, counts: NDArray[np.uint64], scale: int, limit: float) -> tuple[list[float], list[int], int]:
    """Return the edges and counts of the buckets above a limit, and the count of all values up to the limit."""
    exponent = min(max(-scale, -_FAR), _FAR)  # larger exponents would give a base of 0 or infinity anyway
    with np.errstate(over="ignore", under="ignore"):
        edges = np.exp2(np.ldexp(np.arange(first, first + len(counts) + 1, dtype=np.float64), exponent))
    beyond = edges[1:] > limit
    within = int(counts[~beyond].sum())
    if not beyond.any():
        return [], [], within
    upper = edges[1:][beyond].tolist()
    lowest = max(float(edges[:-1][beyond][0]), limit)
    return [lowest, *upper], counts[beyond].tolist(), within


def _halve(offset: int, counts: NDArray[np.uint64]) -> Side:
    """Merge buckets to reduce the scale by one: bucket i becomes part of bucket i // 2."""
    if not len(counts):
        return offset >> 1, counts
    padded = np.concatenate((np.zeros(offset % 2, np.uint64), counts))
    padded = np.concatenate((padded, np.zeros(len(padded) % 2, np.uint64)))
    return offset >> 1, padded.reshape(-1, 2).sum(axis=1, dtype=np.uint64)


def increasing(bounds: list[float], counts: list[int]) -> tuple[list[float], list[int]]:
    """Drop bounds that are infinite or do not exceed the previous bound, and merge the affected buckets.

    This is necessary if float64 cannot represent a bound or distinguish two bounds.
    """
    new_bounds: list[float] = []
    new_counts = [counts[0]]
    for bound, count in zip(bounds, counts[1:], strict=True):
        if np.isfinite(bound) and (not new_bounds or bound > new_bounds[-1]):
            new_bounds.append(bound)
            new_counts.append(count)
        else:
            new_counts[-1] += count
    return new_bounds, new_counts
