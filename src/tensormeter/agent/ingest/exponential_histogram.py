"""Exponential histograms: mapping values to buckets, and limiting the number of buckets.

At a given scale, bucket i is ``(base ** i, base ** (i + 1)]`` with ``base = 2 ** 2 ** -scale``. When the values of one
sign span more buckets than allowed, the scale decreases and neighboring buckets merge in pairs.

Source: OpenTelemetry's metrics data model, "ExponentialHistogram". The mapping is identical to that of the Python SDK,
bit for bit.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Buckets", "bucket_indices", "fold"]

_MIN_NORMAL: Final = sys.float_info.min
_MIN_EXPONENT: Final = -1022
_MAX_EXPONENT: Final = 1023

Counts = Mapping[int, int]
"""Counts by bucket index."""


@dataclass(frozen=True)
class Buckets:
    """Buckets for positive and negative values at one scale.

    Attributes:
        scale: Scale for positive and negative values.
        zeros: Number of values that are 0.
        positive: Counts of positive values, by bucket.
        negative: Counts of the magnitudes of negative values, by bucket.
    """

    scale: int
    zeros: int = 0
    positive: Counts = field(default_factory=dict)
    negative: Counts = field(default_factory=dict)


def fold(buckets: Buckets, values: NDArray[np.float64], *, most: int) -> Buckets:
    """Add finite values to buckets.

    Returns:
        Buckets at the highest scale at which neither side spans more than `most` buckets.
    """
    scale = buckets.scale
    sides = [(buckets.positive, values[values > 0]), (buckets.negative, -values[values < 0])]
    while not all(_span(counts, buckets.scale - scale, magnitudes, scale) <= most for counts, magnitudes in sides):
        scale -= 1
    positive, negative = [_add(_lower(counts, buckets.scale - scale), added, scale) for counts, added in sides]
    return Buckets(scale, buckets.zeros + int(np.count_nonzero(values == 0)), positive, negative)


def bucket_indices(magnitudes: NDArray[np.float64], scale: int) -> NDArray[np.int64]:
    """Return the bucket index of each positive finite value."""
    fractions, exponents = np.frexp(magnitudes)
    exponents = exponents.astype(np.int64) - 1
    powers_of_two = fractions == 0.5
    if scale <= 0:
        indices: NDArray[np.int64] = exponents - powers_of_two
        indices[magnitudes < _MIN_NORMAL] = _MIN_EXPONENT - 1
        return np.right_shift(indices, -scale)
    # NumPy's logarithm may differ in the last bit between processors.
    logarithms = np.fromiter(map(math.log, magnitudes.tolist()), np.float64, len(magnitudes))
    indices = np.floor(logarithms * math.ldexp(1 / math.log(2), scale)).astype(np.int64)
    indices = np.minimum(indices, ((_MAX_EXPONENT + 1) << scale) - 1)
    indices = np.where(powers_of_two, (exponents << scale) - 1, indices)
    indices[magnitudes <= _MIN_NORMAL] = (_MIN_EXPONENT << scale) - 1
    return indices


def _span(counts: Counts, shift: int, magnitudes: NDArray[np.float64], scale: int) -> int:
    """Return the number of buckets that one side spans, from the first to the last."""
    ends = [index >> shift for index in (min(counts), max(counts))] if counts else []
    if len(magnitudes):
        ends += bucket_indices(np.array([magnitudes.min(), magnitudes.max()]), scale).tolist()
    return max(ends) - min(ends) + 1 if ends else 0


def _lower(counts: Counts, shift: int) -> dict[int, int]:
    lowered: dict[int, int] = {}
    for index, count in counts.items():
        lowered[index >> shift] = lowered.get(index >> shift, 0) + count
    return lowered


def _add(counts: dict[int, int], magnitudes: NDArray[np.float64], scale: int) -> Counts:
    indices, numbers = np.unique(bucket_indices(magnitudes, scale), return_counts=True)
    for index, number in zip(indices.tolist(), numbers.tolist(), strict=True):
        counts[index] = counts.get(index, 0) + number
    return counts
