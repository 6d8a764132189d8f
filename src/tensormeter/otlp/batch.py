"""Columnar telemetry: the representation of points and events between the ring, the wire and the store."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.conventions.semconv import STEP_METRIC

__all__ = [
    "SCOPE",
    "STEP_METRIC",
    "Attribute",
    "Batch",
    "Buckets",
    "Distribution",
    "Event",
    "ExponentialHistogram",
    "Gauge",
    "Histogram",
    "Scope",
    "Series",
    "Sum",
    "Summary",
    "Temporality",
    "Value",
]

Value = None | bool | int | float | str | bytes | Sequence["Value"] | Mapping[str, "Value"]
Attribute = bool | int | float | str | Sequence[bool] | Sequence[int] | Sequence[float] | Sequence[str]


class Temporality(enum.IntEnum):
    """The period that a point covers: since its series began, or since the previous point. The values match OTLP's."""

    UNSPECIFIED = 0
    DELTA = 1
    CUMULATIVE = 2


@dataclass(frozen=True)
class Scope:
    """An instrumentation scope: the library that created the instruments."""

    name: str = "tensormeter"
    version: str = ""
    schema_url: str = ""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


SCOPE: Final = Scope(version=metadata.version("tensormeter"))
"""Scope of the values that `Run.log` records, and of tensormeter's own metrics and events."""


@dataclass(frozen=True)
class Series:
    """Points of one metric with one attribute set, as columns of equal length n. Base class of the five kinds below.

    Attributes:
        name: Name of the metric.
        times: Time of each point in nanoseconds since the Unix epoch, uint64, shape (n,).
        unit: UCUM unit, or "".
        description: Human-readable description, or "".
        attributes: Attribute set that distinguishes this series from others with the same name.
        scope: Instrumentation scope.
    """

    name: str
    times: NDArray[np.uint64]
    unit: str = field(default="", kw_only=True)
    description: str = field(default="", kw_only=True)
    attributes: Mapping[str, Attribute] = field(default_factory=dict, kw_only=True)
    scope: Scope = field(default=SCOPE, kw_only=True)


@dataclass(frozen=True)
class Gauge(Series):
    """Measured values.

    Attributes:
        values: Value of each point, float64 or int64, shape (n,). NaN and infinities are valid values.
    """

    values: NDArray[np.float64] | NDArray[np.int64]


@dataclass(frozen=True)
class Sum(Series):
    """Values that can be added up, over time or across series.

    Attributes:
        values: Value of each point, float64 or int64, shape (n,).
        start_times: Start of each value's period in nanoseconds since the Unix epoch, uint64, shape (n,); 0 if unknown.
        monotonic: Whether the sum never decreases (a counter rather than an up-down counter).
        temporality: Temporality of all points.
    """

    values: NDArray[np.float64] | NDArray[np.int64]
    start_times: NDArray[np.uint64]
    monotonic: bool = field(default=True, kw_only=True)
    temporality: Temporality = field(default=Temporality.CUMULATIVE, kw_only=True)


@dataclass(frozen=True)
class Distribution(Series):
    """Base class of both kinds of histogram.

    Attributes:
        start_times: Start of each point's period, as for `Sum`.
        counts: Number of values in each distribution, uint64, shape (n,).
        sums: Sum of each distribution, float64, shape (n,); NaN if unknown.
        minima: Minimum of each distribution, float64, shape (n,); NaN if unknown.
        maxima: Maximum of each distribution, float64, shape (n,); NaN if unknown.
        temporality: Temporality of all points.
    """

    start_times: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    sums: NDArray[np.float64]
    minima: NDArray[np.float64]
    maxima: NDArray[np.float64]
    temporality: Temporality = field(default=Temporality.CUMULATIVE, kw_only=True)


@dataclass(frozen=True)
class Histogram(Distribution):
    """Distributions over explicit buckets. Points with other bounds are in another `Histogram` with the same name.

    Attributes:
        bounds: Increasing bounds, float64, shape (k,). Bucket i is ``(bounds[i - 1], bounds[i]]``. The first and last are open.
        buckets: Count of each bucket, uint64, shape (n, k + 1), or shape (n, 0) without buckets.
    """

    bounds: NDArray[np.float64]
    buckets: NDArray[np.uint64]


@dataclass(frozen=True)
class Buckets:
    """The positive or negative side of exponential histograms.

    Attributes:
        offsets: Index of each point's first bucket, int64, shape (n,).
        counts: Counts of each point's buckets, starting at the offset, uint64, of any length.
    """

    offsets: NDArray[np.int64]
    counts: Sequence[NDArray[np.uint64]]


@dataclass(frozen=True)
class ExponentialHistogram(Distribution):
    """Distributions over buckets whose bounds are powers of ``2 ** 2 ** -scale``.

    Bucket i of the positive side is ``(base ** i, base ** (i + 1)]``. The negative side has the same buckets for magnitudes.

    Attributes:
        scales: Scale of each point, int64, shape (n,).
        zero_counts: Number of values whose magnitude does not exceed the zero threshold, uint64, shape (n,).
        zero_thresholds: Zero threshold of each point, float64, shape (n,).
        positive: Buckets of positive values.
        negative: Buckets of negative values.
    """

    scales: NDArray[np.int64]
    zero_counts: NDArray[np.uint64]
    zero_thresholds: NDArray[np.float64]
    positive: Buckets
    negative: Buckets


@dataclass(frozen=True)
class Summary(Series):
    """Quantiles that another program has computed. tensormeter only receives summaries, from old instrumentation.

    Attributes:
        start_times: Start of each point's period, as for `Sum`.
        counts: Number of values in each point, uint64, shape (n,).
        sums: Sum of each point's values, float64, shape (n,).
        quantiles: Quantiles from 0 to 1, float64, shape (k,).
        values: Values at the quantiles, float64, shape (n, k).
    """

    start_times: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    sums: NDArray[np.float64]
    quantiles: NDArray[np.float64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Batch:
    """Points of one resource, which in tensormeter is one process of a run.

    Attributes:
        resource: Attributes of the resource.
        series: Series of the resource.
        gaps: Points that mark a time at which their series has no value. Their NaN values are meaningless.
    """

    resource: Mapping[str, Attribute]
    series: Sequence[Series]
    gaps: Sequence[Gauge | Sum] = ()

    @property
    def gauges(self) -> list[Gauge]:
        return [series for series in self.series if isinstance(series, Gauge)]

    @property
    def points(self) -> int:
        return sum(len(series.times) for series in self.series)


@dataclass(frozen=True)
class Event:
    """A log record with an event name, used for lifecycle, config and media.

    Attributes:
        name: Event name, such as `tensormeter.run.start`.
        time: Time in nanoseconds since the Unix epoch.
        body: OTLP value, in which mappings and sequences may be nested.
        attributes: Attributes of the record.
        severity_number: OTLP severity number from 1 (TRACE) to 24 (FATAL4), or 0 for none.
        severity_text: Severity in the sender's terms, or "".
        trace_id: Trace id in lower-case hexadecimal, or "".
        span_id: Span id in lower-case hexadecimal, or "".
        flags: OTLP log record flags.
        observed_time: Time of collection in nanoseconds since the Unix epoch, or 0 if unknown.
        scope: Instrumentation scope.
    """

    name: str
    time: int
    body: Value = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    severity_number: int = field(default=0, kw_only=True)
    severity_text: str = field(default="", kw_only=True)
    trace_id: str = field(default="", kw_only=True)
    span_id: str = field(default="", kw_only=True)
    flags: int = field(default=0, kw_only=True)
    observed_time: int = field(default=0, kw_only=True)
    scope: Scope = field(default=SCOPE, kw_only=True)
