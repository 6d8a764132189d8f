"""A decoder that converts stored distributions of any kind to bucket bounds and counts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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

__all__ = ["Distribution", "decode_distribution", "decode_exactly"]

MAX_BUCKETS: Final = 160
"""Maximum number of buckets drawn for an exponential histogram."""


@dataclass(frozen=True)
class Distribution:
    """A distribution of values.

    Attributes:
        sum: Sum of the values; None if the sender did not send it.
        min: Lowest value; None if the sender did not send it.
        max: Highest value; None if the sender did not send it.
        bounds: Bucket bounds in increasing order. Bucket i is (bounds[i - 1], bounds[i]]. The first and last buckets
            are unbounded at their outer ends.
        counts: Number of values in each bucket, with one more item than `bounds`; empty if there are no buckets.
        quantiles: Pairs (quantile, value) of a summary.
        start_time: Start of the period that the distribution covers, in nanoseconds since the Unix epoch; 0 if unknown.
        exponential: Buckets of an exponential histogram, if `bounds` and `counts` do not represent them.
    """

    count: int
    sum: float | None
    min: float | None
    max: float | None
    bounds: Sequence[float]
    counts: Sequence[int]
    quantiles: Sequence[tuple[float, float]] = ()
    start_time: int = 0
    exponential: ExponentialHistogramDataPoint | None = None


def decode_distribution(kind: Kind, blob: bytes, max_buckets: int = MAX_BUCKETS) -> Distribution:
    """Decode a stored distribution.

    Args:
        kind: Kind of the series.
        blob: Stored bytes.
        max_buckets: Maximum number of buckets of an exponential histogram. To stay within it, neighboring buckets are
            merged exactly.

    Raises:
        StoreError: The bytes are not a valid distribution of this kind.
    """
    try:
        match kind.name:
            case "histogram":
                point = HistogramDataPoint.FromString(blob)
                return _distribution(point, *_valid_buckets(list(point.explicit_bounds), list(point.bucket_counts)))
            case "exponential_histogram":
                exponential = ExponentialHistogramDataPoint.FromString(blob)
                return _distribution(exponential, *_explicit(exponential, max_buckets))
            case _:
                summary = SummaryDataPoint.FromString(blob)
                quantiles = [(value.quantile, value.value) for value in summary.quantile_values]
                return Distribution(summary.count, summary.sum, None, None, [], [], quantiles)
    except DecodeError as error:
        raise StoreError(f"a distribution in the store is damaged: {error}") from None


def decode_exactly(kind: Kind, blob: bytes) -> Distribution:
    """Decode a stored distribution without changing its buckets. See `decode_distribution` for arguments and errors."""
    try:
        match kind.name:
            case "histogram":
                point = HistogramDataPoint.FromString(blob)
                distribution = _distribution(point, list(point.explicit_bounds), list(point.bucket_counts))
                return replace(distribution, start_time=point.start_time_unix_nano)
            case "exponential_histogram":
                exponential = ExponentialHistogramDataPoint.FromString(blob)
                distribution = _distribution(exponential, [], [])
                return replace(distribution, start_time=exponential.start_time_unix_nano, exponential=exponential)
            case _:
                start_time = SummaryDataPoint.FromString(blob).start_time_unix_nano
                return replace(decode_distribution(kind, blob), start_time=start_time)
    except DecodeError as error:
        raise StoreError(f"a distribution in the store is damaged: {error}") from None


def _distribution(
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


def _valid_buckets(bounds: list[float], counts: list[int]) -> tuple[list[float], list[int]]:
    """Return bounds and counts, merging buckets whose bounds do not increase.

    Return empty lists if the numbers of bounds and counts do not match, which OTLP forbids.
    """
    return increasing(bounds, counts) if len(counts) == len(bounds) + 1 else ([], [])


def _explicit(point: ExponentialHistogramDataPoint, max_buckets: int) -> tuple[list[float], list[int]]:
    positive, negative = (
        (side.offset, np.array(side.bucket_counts, np.uint64)) for side in (point.positive, point.negative)
    )
    return explicit_buckets(
        point.scale, point.zero_count, point.zero_threshold, positive, negative, max_buckets=max_buckets
    )
