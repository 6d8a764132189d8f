"""Distributions as bounds and counts, whatever kind of histogram they came as."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    SummaryDataPoint,
)

from tensormeter.errors import StoreError
from tensormeter.server.store import Kind

__all__ = ["Distribution", "decode_distribution"]

MAX_BUCKETS: Final = 160
"""Buckets of an exponential histogram that is to be looked at."""

_FAR: Final = 2000


@dataclass(frozen=True)
class Distribution:
    """One distribution.

    Attributes:
        sum: None if it was not sent; so are `min` and `max`.
        bounds: Increasing. Bucket i is (bounds[i - 1], bounds[i]]; the first and the last are open.
        counts: One more than bounds; empty if there are none.
        quantiles: Of a summary: (quantile, value).
    """

    count: int
    sum: float | None
    min: float | None
    max: float | None
    bounds: Sequence[float]
    counts: Sequence[int]
    quantiles: Sequence[tuple[float, float]] = ()


def decode_distribution(kind: Kind, blob: bytes, max_buckets: int = MAX_BUCKETS) -> Distribution:
    """A stored distribution.

    Args:
        kind: Of its series.
        blob: As it is stored.
        max_buckets: Of an exponential histogram; above it neighbours are merged, which is exact.

    Raises:
        StoreError: The bytes are not one.
    """
    try:
        match kind.name:
            case "histogram":
                point = HistogramDataPoint.FromString(blob)
                return _of(point, *_ordered(list(point.explicit_bounds), list(point.bucket_counts)))
            case "exponential_histogram":
                exponential = ExponentialHistogramDataPoint.FromString(blob)
                return _of(exponential, *_explicit(exponential, max_buckets))
            case _:
                summary = SummaryDataPoint.FromString(blob)
                quantiles = [(value.quantile, value.value) for value in summary.quantile_values]
                return Distribution(summary.count, summary.sum, None, None, [], [], quantiles)
    except DecodeError as error:
        raise StoreError(f"a distribution in the store is damaged: {error}") from None


def _of(
    point: HistogramDataPoint | ExponentialHistogramDataPoint, bounds: list[float], counts: list[int]
) -> Distribution:
    return Distribution(
        point.count,
        point.sum if point.HasField("sum") else None,
        point.min if point.HasField("min") else None,
        point.max if point.HasField("max") else None,
        bounds,
        counts,
    )


def _ordered(bounds: list[float], counts: list[int]) -> tuple[list[float], list[int]]:
    """Bounds and counts as they were sent; nothing if they do not fit each other, which OTLP does not allow."""
    return _increasing(bounds, counts) if len(counts) == len(bounds) + 1 else ([], [])


def _explicit(point: ExponentialHistogramDataPoint, max_buckets: int) -> tuple[list[float], list[int]]:
    """Bounds and counts; OpenTelemetry metrics data model, ExponentialHistogram."""
    sides = [(side.offset, np.array(side.bucket_counts, np.uint64)) for side in (point.positive, point.negative)]
    scale = point.scale
    while sum(len(counts) for _, counts in sides) > max_buckets:
        sides, scale = [_halve(*side) for side in sides], scale - 1
    (positive_offset, positive), (negative_offset, negative) = sides
    if not (point.zero_count or len(positive) or len(negative)):
        return [], []
    bounds: list[float] = []
    counts: list[int] = [0]
    if len(negative):
        edges = _edges(negative_offset, len(negative), scale)
        bounds += (-edges[::-1]).tolist()
        counts += negative[::-1].tolist()
    else:
        bounds.append(-point.zero_threshold)
    # Between the negative and the positive buckets lies everything that counts as zero.
    counts.append(point.zero_count)
    if len(positive):
        bounds += _edges(positive_offset, len(positive), scale).tolist()
        counts += positive.tolist()
    else:
        bounds.append(point.zero_threshold)
    return _increasing(bounds, [*counts, 0])


def _edges(offset: int, n: int, scale: int) -> NDArray[np.float64]:
    exponent = min(max(-scale, -_FAR), _FAR)  # what is further away is zero or infinite anyway
    with np.errstate(over="ignore", under="ignore"):
        edges: NDArray[np.float64] = np.exp2(np.ldexp(np.arange(offset, offset + n + 1, dtype=np.float64), exponent))
        return edges


def _halve(offset: int, counts: NDArray[np.uint64]) -> tuple[int, NDArray[np.uint64]]:
    """Buckets of the next lower scale: i goes into i // 2."""
    if not len(counts):
        return offset >> 1, counts
    padded = np.concatenate((np.zeros(offset % 2, np.uint64), counts))
    padded = np.concatenate((padded, np.zeros(len(padded) % 2, np.uint64)))
    return offset >> 1, padded.reshape(-1, 2).sum(axis=1, dtype=np.uint64)


def _increasing(bounds: list[float], counts: list[int]) -> tuple[list[float], list[int]]:
    """Without bounds that are not above the one before, as where buckets are too fine or too far out for float64."""
    kept_bounds: list[float] = []
    kept_counts = [counts[0]]
    for bound, count in zip(bounds, counts[1:], strict=True):
        if np.isfinite(bound) and (not kept_bounds or bound > kept_bounds[-1]):
            kept_bounds.append(bound)
            kept_counts.append(count)
        else:
            kept_counts[-1] += count
    return kept_bounds, kept_counts
