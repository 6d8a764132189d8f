"""Columnar telemetry: the in-memory representation of points and events, shared by the agent and the server."""

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
    """The period that a point covers: since the start of its series, or since the previous point. The numbers are OTLP's."""

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
"""Scope of values logged with `Run.log`, and of tensormeter's own metrics and events."""


@dataclass(frozen=True)
class Series:
    """The points of one metric with one attribute set, as columns of equal length n. Base class of the five kinds of series.

    Attributes:
        name: Name of the metric.
        times: Time of each point in nanoseconds since the Unix epoch, uint64, shape (n,).
        unit: UCUM unit, or "".
        description: Human-readable description, or "".
        attributes: Attribute set that distinguishes this series from other series with the same name.
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
        monotonic: Whether the sum never decreases. True for a counter, and False for an up-down counter.
        temporality: Temporality of all points.
    """

    values: NDArray[np.float64] | NDArray[np.int64]
    start_times: NDArray[np.uint64]
    monotonic: bool = field(default=True, kw_only=True)
    temporality: Temporality = field(default=Temporality.CUMULATIVE, kw_only=True)


@dataclass(frozen=True)
class Distribution(Series):
    """Base class of explicit-bucket and exponential histograms.

    Attributes:
        start_times: Start of each point's period, as for `Sum`.
        counts: Number of values in each distribution, uint64, shape (n,).
        sums: Sum of the values in each distribution, float64, shape (n,); NaN if unknown.
        minima: Smallest value in each distribution, float64, shape (n,); NaN if unknown.
        maxima: Largest value in each distribution, float64, shape (n,); NaN if unknown.
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
    """Distributions over explicit buckets. Points with different bounds belong to separate `Histogram` objects.

    Attributes:
        bounds: Increasing bounds, float64, shape (k,). Bucket i is ``(bounds[i - 1], bounds[i]]``. The first bucket has no
            lower bound, and the last bucket has no upper bound.
        buckets: Count of values in each bucket, uint64, shape (n, k + 1), or shape (n, 0) if there are no buckets.
    """

    bounds: NDArray[np.float64]
    buckets: NDArray[np.uint64]


@dataclass(frozen=True)
class Buckets:
    """The positive or negative side of exponential histograms.

    Attributes:
        offsets: Index of each point's first bucket, int64, shape (n,).
        counts: Bucket counts of each point, starting with the first bucket. The n arrays of uint64 can have any length.
    """

    offsets: NDArray[np.int64]
    counts: Sequence[NDArray[np.uint64]]


@dataclass(frozen=True)
class ExponentialHistogram(Distribution):
    """Distributions over buckets whose bounds are powers of ``base = 2 ** 2 ** -scale``.

    Bucket i of the positive side is ``(base ** i, base ** (i + 1)]``. The negative side has the same buckets, and counts the
    magnitudes of negative values.

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
    """Quantiles that another program has computed. tensormeter receives summaries from old instrumentation, but sends none.

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
    """The points of one resource. In tensormeter, a resource is one process of a run.

    Attributes:
        resource: Attributes of the resource.
        series: Series of the resource.
        gaps: Points that mark times at which a series has no value. The values of these points are NaN placeholders.
    """

    resource: Mapping[str, Attribute]
    series: Sequence[Series]
    gaps: Sequence[Gauge | Sum] = ()

    @property
    def all_series(self) -> Sequence[Series]:
        """All series. A subclass may hold some of them in another form."""
        return self.series

    @property
    def gauges(self) -> list[Gauge]:
        return [series for series in self.all_series if isinstance(series, Gauge)]

    @property
    def points(self) -> int:
        return sum(len(series.times) for series in self.series)


@dataclass(frozen=True)
class Event:
    """A log record with an event name. Events describe the lifecycle, configuration, alerts and media of runs.

    Attributes:
        name: Event name, such as `tensormeter.run.start`.
        time: Time in nanoseconds since the Unix epoch.
        body: OTLP value. Mappings and sequences may be nested.
        attributes: Attributes of the record.
        severity_number: OTLP severity number from 1 (TRACE) to 24 (FATAL4), or 0 for none.
        severity_text: Severity as named by the sender, or "".
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
