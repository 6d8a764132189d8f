"""Conversion of distributions to classic Prometheus histograms with few, stable bounds.

Prometheus stores each bucket as a separate time series, so there must be few bounds, and they must not change between
scrapes. Explicit bounds are kept if there are few enough. Otherwise, only every n-th bound is kept. Exponential buckets
are merged exactly into buckets of one coarser scale per series, which cover the range of all values so far. If the
range needs too many buckets, the scale is reduced by one; the new bounds are a subset of the previous ones.
"""

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.batch import Distribution, ExponentialHistogram, Histogram

__all__ = ["ClassicBuckets"]

_FINEST = 2
"""Initial scale of a series: four buckets for each power of two."""


class ClassicBuckets:
    """Bucket bounds of one series."""

    def __init__(self, most: int) -> None:
        """
        Args:
            most: Maximum number of buckets, including the one that ends at infinity; at least 6.
        """
        self._most = most
        self._scale = _FINEST
        self._ranges: list[tuple[int, int] | None] = [None, None]
        """Indices of the first and last bucket at the current scale, for negative and for positive values."""

    def of(self, series: Distribution, index: int) -> list[tuple[float, int]]:
        """Return one distribution as pairs of inclusive upper bound and cumulative count. The last bound is infinity."""
        total = int(series.counts[index])
        if isinstance(series, Histogram):
            bounds, counts = self._explicit(series, index)
        elif isinstance(series, ExponentialHistogram):
            bounds, counts = self._exponential(series, index)
        else:
            raise TypeError(f"not a histogram: {type(series).__name__}")
        below = np.cumsum(counts).tolist()
        return [*zip(bounds.tolist(), below, strict=True), (float("inf"), total)]

    def _explicit(self, series: Histogram, index: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        counts = series.buckets[index]
        if not len(counts):
            return np.empty(0), np.empty(0, np.int64)
        step = -(-len(counts) // self._most)
        last = np.arange(step - 1, len(series.bounds), step)
        return series.bounds[last], np.diff(np.cumsum(counts.astype(np.int64))[last], prepend=0)

    def _exponential(self, series: ExponentialHistogram, index: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        scale = int(series.scales[index])
        sides = []
        for side in (series.negative, series.positive):
            counts = side.counts[index].astype(np.int64)
            occupied = np.flatnonzero(counts)
            sides.append((occupied + int(side.offsets[index]), counts[occupied]))
        while self._scale > scale:
            self._coarsen()
        while True:
            indices = [(numbers >> (scale - self._scale), counts) for numbers, counts in sides]
            wanted = [_wider(*pair) for pair in zip(self._ranges, (numbers for numbers, _ in indices), strict=True)]
            if sum(last - first + 1 for first, last in filter(None, wanted)) + 2 <= self._most:
                break
            self._coarsen()
        self._ranges = wanted
        bounds, buckets = [0.0], [int(series.zero_counts[index])]
        negative, positive = (
            None if reach is None else np.bincount(numbers - reach[0], counts, reach[1] - reach[0] + 1).astype(np.int64)
            for reach, (numbers, counts) in zip(wanted, indices, strict=True)
        )
        if wanted[0] is not None and negative is not None:
            # Bucket i is [-base^(i+1), -base^i), so the order is reversed, and each bucket ends at its smaller
            # magnitude.
            bounds = [*(-self._bounds(*wanted[0])[::-1]), *bounds]
            buckets = [*negative[::-1].tolist(), *buckets]
        if wanted[1] is not None and positive is not None:
            first, last = wanted[1]
            bounds += self._bounds(first + 1, last + 1).tolist()
            buckets += positive.tolist()
        return np.array(bounds), np.array(buckets)

    def _bounds(self, first: int, last: int) -> NDArray[np.float64]:
        with np.errstate(over="ignore"):
            bounds: NDArray[np.float64] = np.exp2(np.arange(first, last + 1) * 2.0**-self._scale)
        return np.minimum(bounds, np.finfo(np.float64).max)

    def _coarsen(self) -> None:
        self._scale -= 1
        self._ranges = [reach and (reach[0] >> 1, reach[1] >> 1) for reach in self._ranges]


def _wider(reach: tuple[int, int] | None, numbers: NDArray[np.int64]) -> tuple[int, int] | None:
    if not len(numbers):
        return reach
    low, high = int(numbers.min()), int(numbers.max())
    return (low, high) if reach is None else (min(low, reach[0]), max(high, reach[1]))
