"""Telemetry in columns: what travels between the ring and the wire, and between the wire and the store."""

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

"""The gauge that carries a row's step, at the row's exact time: a sibling of the row's values, never an attribute."""


class Temporality(enum.IntEnum):
    """Whether a point tells of the time since its series began or since the point before; OTLP's numbers."""

    UNSPECIFIED = 0
    DELTA = 1
    CUMULATIVE = 2


@dataclass(frozen=True)
class Scope:
    """An instrumentation scope: who made the instruments."""

    name: str = "tensormeter"
    version: str = ""
    schema_url: str = ""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


SCOPE: Final = Scope(version=metadata.version("tensormeter"))
"""The scope of what is logged by `Run.log`, and of everything tensormeter says itself."""


@dataclass(frozen=True)
class Series:
    """Points of one metric with one attribute set, in columns of equal length n. The base of the five kinds below.

    Attributes:
        name: The metric's name.
        times: Nanoseconds since the Unix epoch, uint64, shape (n,).
        unit: UCUM unit, or "".
        description: For people, or "".
        attributes: The attribute set that tells this series from others of the same name.
        scope: The instrumentation scope.
    """

    name: str
    times: NDArray[np.uint64]
    unit: str = field(default="", kw_only=True)
    description: str = field(default="", kw_only=True)
    attributes: Mapping[str, Attribute] = field(default_factory=dict, kw_only=True)
    scope: Scope = field(default=SCOPE, kw_only=True)


@dataclass(frozen=True)
class Gauge(Series):
    """Values as they were measured.

    Attributes:
        values: float64 or int64, shape (n,). NaN and infinities are values.
    """

    values: NDArray[np.float64] | NDArray[np.int64]


@dataclass(frozen=True)
class Sum(Series):
    """Values that add up, over time or over series.

    Attributes:
        values: float64 or int64, shape (n,).
        start_times: Since when each value counts, nanoseconds since the Unix epoch, uint64, shape (n,); 0 if unknown.
        monotonic: Whether it never decreases: a counter, not an up-down counter.
        temporality: Of all points.
    """

    values: NDArray[np.float64] | NDArray[np.int64]
    start_times: NDArray[np.uint64]
    monotonic: bool = field(default=True, kw_only=True)
    temporality: Temporality = field(default=Temporality.CUMULATIVE, kw_only=True)


@dataclass(frozen=True)
class Distribution(Series):
    """What both kinds of histogram have.

    Attributes:
        start_times: As for `Sum`.
        counts: Values in each distribution, uint64, shape (n,).
        sums: float64, shape (n,); NaN where there is none.
        minima: float64, shape (n,); NaN where there is none.
        maxima: float64, shape (n,); NaN where there is none.
        temporality: Of all points.
    """

    start_times: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    sums: NDArray[np.float64]
    minima: NDArray[np.float64]
    maxima: NDArray[np.float64]
    temporality: Temporality = field(default=Temporality.CUMULATIVE, kw_only=True)


@dataclass(frozen=True)
class Histogram(Distribution):
    """Distributions over explicit buckets. Points with other bounds belong into another `Histogram` of the same name.

    Attributes:
        bounds: Increasing, float64, shape (k,). Bucket i is ``(bounds[i - 1], bounds[i]]``; the first and the last are open.
        buckets: Counts, uint64, shape (n, k + 1); or (n, 0) if there are none.
    """

    bounds: NDArray[np.float64]
    buckets: NDArray[np.uint64]


@dataclass(frozen=True)
class Buckets:
    """One side of exponential histograms.

    Attributes:
        offsets: Index of each point's first bucket, int64, shape (n,).
        counts: For each point its buckets' counts, uint64, of any length, from the offset on.
    """

    offsets: NDArray[np.int64]
    counts: Sequence[NDArray[np.uint64]]


@dataclass(frozen=True)
class ExponentialHistogram(Distribution):
    """Distributions over buckets whose bounds are powers of ``2 ** 2 ** -scale``.

    Bucket i of the positive side is ``(base ** i, base ** (i + 1)]``; the negative side is the same of the magnitudes.

    Attributes:
        scales: int64, shape (n,).
        zero_counts: Values whose magnitude is at most the threshold, uint64, shape (n,).
        zero_thresholds: float64, shape (n,).
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
    """Quantiles that somebody else computed. Nothing of ours makes them; old instrumentation does.

    Attributes:
        start_times: As for `Sum`.
        counts: uint64, shape (n,).
        sums: float64, shape (n,).
        quantiles: From 0 to 1, float64, shape (k,).
        values: At the quantiles, float64, shape (n, k).
    """

    start_times: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    sums: NDArray[np.float64]
    quantiles: NDArray[np.float64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Batch:
    """Points of one resource (for us: one process of one run).

    Attributes:
        gaps: Points that say that their series has no value at their time; their values are NaN and mean nothing.
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
    """A log record with an event name: lifecycle, configuration, media.

    Attributes:
        name: Such as `tensormeter.run.start`.
        time: Nanoseconds since the Unix epoch.
        body: Any OTLP value; mappings and sequences may nest.
        attributes: The record's attributes.
        severity_number: OTLP's number, 1 (TRACE) to 24 (FATAL4); 0 if the record has none.
        severity_text: The sender's word for it, or "".
        trace_id: Lower-case hexadecimal, or "".
        span_id: The same.
        flags: OTLP's flags of a log record.
        observed_time: When it was collected, in nanoseconds since the Unix epoch; 0 if unknown.
        scope: The instrumentation scope.
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
