"""Distributions as bounds and counts, whatever kind of histogram they came as."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    SummaryDataPoint,
)

from tensormeter.errors import StoreError
from tensormeter.otlp.buckets import explicit_buckets, increasing
from tensormeter.server.store import Kind

__all__ = ["Distribution", "decode_distribution"]

MAX_BUCKETS: Final = 160
"""Buckets of an exponential histogram that is to be looked at."""


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
    return increasing(bounds, counts) if len(counts) == len(bounds) + 1 else ([], [])


def _explicit(point: ExponentialHistogramDataPoint, max_buckets: int) -> tuple[list[float], list[int]]:
    positive, negative = (
        (side.offset, np.array(side.bucket_counts, np.uint64)) for side in (point.positive, point.negative)
    )
    return explicit_buckets(
        point.scale, point.zero_count, point.zero_threshold, positive, negative, max_buckets=max_buckets
    )
