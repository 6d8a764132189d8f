"""Application of the user's views to an instrument.

The SDK's `View` has no public attributes, so this module determines the effect of views with a trial. The trial records one
measurement with an SDK provider that uses the views. The collected metrics then have the name, unit, kind, buckets and
attributes that the views produce.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.metrics import CallbackOptions, Observation

from tensormeter.environment.variables import sdk_enabled
from tensormeter.instruments.registry import warn_once

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import Metric
    from opentelemetry.sdk.metrics.view import View

__all__ = [
    "InstrumentIdentity",
    "ScopeIdentity",
    "Template",
    "Views",
    "create_sdk_instrument",
    "measuring_method",
]

_DEFAULT_BOUNDS: Final = (0, 5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10000)
"""Default bucket boundaries (OpenTelemetry metrics SDK specification, "Explicit Bucket Histogram Aggregation")."""

_UNNAMED: Final = "unnamed"
"""Replacement for an empty meter name, because an SDK meter without a name records nothing."""

_MOST_BUCKETS: Final = 160
"""Maximum number of buckets on each side of an exponential histogram: the specification's default."""

_HIGHEST_SCALE: Final = 20
"""Maximum scale of an exponential histogram: the specification's default."""


@dataclass(frozen=True)
class ScopeIdentity:
    """The instrumentation scope that identifies a meter."""

    name: str
    version: str = ""
    schema_url: str = ""
    attributes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class InstrumentIdentity:
    """The identity of an instrument.

    Attributes:
        kind: `counter`, `up_down_counter`, `gauge`, `histogram`, `observable_counter`, `observable_up_down_counter` or
            `observable_gauge`. The meter method that creates the instrument is named `create_` plus the kind.
        name: Name, spelled as in its first use.
        unit: Unit, or "".
        description: Description, or "".
        scope: Scope of the meter.
        bounds: Bucket boundaries that the instrument's author recommends for a histogram, or None for the default boundaries.
    """

    kind: str
    name: str
    unit: str
    description: str
    scope: ScopeIdentity
    bounds: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Template:
    """The stream that one view produces from an instrument, without attributes.

    Attributes:
        name: Name of the stream.
        kind: Kind of the stream.
        unit: Unit of the stream, or "".
        description: Description of the stream, or "".
        bounds: Bucket boundaries of an explicit-bucket histogram, or the maximum number of buckets and the maximum scale of an
            exponential histogram.
        record_min_max: Whether a histogram records its minimum and maximum.
    """

    name: str
    kind: str
    unit: str
    description: str
    bounds: tuple[float, ...] = ()
    record_min_max: bool = True


class Views:
    """The user's views. Thread-safe."""

    def __init__(self, views: Sequence["View"], exponential: Callable[[], bool] = lambda: False) -> None:
        """Store the views.

        Args:
            views: The user's views.
            exponential: Function that returns whether histograms use exponential buckets by default.
        """
        self._views = views
        self._exponential = exponential

    def resolve(self, instrument: InstrumentIdentity, keys: frozenset[str]) -> list[tuple[Template, frozenset[str]]]:
        """Return the streams for measurements with the given attribute keys, and the attribute keys that each stream keeps."""
        exponential = self._exponential()
        if not self._views:
            return [(_default(instrument, exponential=exponential), keys)]
        try:
            trial = _Trial(self._views, instrument, exponential=exponential)
            return [
                (_template(instrument, metric, index, trial), frozenset(metric.data.data_points[0].attributes or {}))
                for index, metric in enumerate(trial.collect(dict.fromkeys(keys, ""), 1))
            ]
        except Exception as error:  # raised by a view, or because the SDK rejects a unit
            warn_once(
                (Views, instrument),
                "cannot apply views to the instrument %r: %s",
                instrument.name,
                error,
                error=error,
            )
            return [(_default(instrument, exponential=exponential), keys)]

    def conflict(self, a: InstrumentIdentity, b: InstrumentIdentity) -> bool:
        """Return whether two instruments have different streams with the same name."""
        streams_a, streams_b = ([stream for stream, _ in self.resolve(item, frozenset())] for item in (a, b))
        return any(x.name.lower() == y.name.lower() and x != y for x in streams_a for y in streams_b)


class _Trial:
    """A trial of the views with one instrument of an SDK provider."""

    def __init__(self, views: Sequence["View"], instrument: InstrumentIdentity, *, exponential: bool) -> None:
        import opentelemetry.sdk.metrics as sdk
        from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
        from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation
        from opentelemetry.sdk.resources import Resource

        kinds = (
            sdk.Counter, sdk.UpDownCounter, sdk.Histogram, sdk.ObservableCounter, sdk.ObservableUpDownCounter,
            sdk.ObservableGauge, sdk._Gauge,
        )  # fmt: skip
        # With delta temporality, each collection covers only the measurements since the previous collection.
        self._reader = InMemoryMetricReader(
            dict.fromkeys(kinds, AggregationTemporality.DELTA),
            {sdk.Histogram: ExponentialBucketHistogramAggregation()} if exponential else None,
        )
        with sdk_enabled():
            provider = sdk.MeterProvider(
                [self._reader],
                Resource.get_empty(),
                exemplar_filter=sdk.AlwaysOffExemplarFilter(),  # the environment may name an unknown filter, which would raise an error
                shutdown_on_exit=False,
                views=views,
            )
        self._observations: list[Observation] = []
        sdk_instrument = create_sdk_instrument(provider, instrument, [lambda options: self._observations])
        self._measure = measuring_method(instrument, sdk_instrument)

    def collect(self, attributes: dict[str, str], *values: float) -> list["Metric"]:
        """Record the values, and return the metrics that the provider collects."""
        if self._measure is None:
            self._observations = [Observation(value, attributes) for value in values]
        else:
            for value in values:
                self._measure(value, attributes)
        data = self._reader.get_metrics_data()
        return [
            metric
            for resource in (data.resource_metrics if data else ())
            for scope_metrics in resource.scope_metrics
            for metric in scope_metrics.metrics
        ]

    def most_buckets(self, index: int, scale: int) -> int:
        """Return the largest number of adjacent buckets that an exponential histogram can fill without reducing its scale.

        Args:
            index: Index of the histogram among the collected metrics. Several metrics can have the same name.
            scale: Maximum scale of the histogram.
        """
        if scale <= 0:
            return _MOST_BUCKETS  # at these scales, the range of float64 may have fewer buckets

        def middle(bucket: int) -> float:
            return float(2 ** ((bucket + 0.5) / 2**scale))

        def fits(count: int) -> bool:
            metric = self.collect({}, middle(0), middle(count - 1))[index]
            return bool(getattr(metric.data.data_points[0], "scale", scale) >= scale)

        low, high = 2, _MOST_BUCKETS
        while low < high:
            count = (low + high + 1) // 2
            low, high = (count, high) if fits(count) else (low, count - 1)
        return low


def create_sdk_instrument(
    provider: "MeterProvider",
    instrument: InstrumentIdentity,
    callbacks: Sequence[Callable[[CallbackOptions], Iterable[Observation]]],
) -> Any:
    """Create an SDK instrument with the given identity. Exceptions from the SDK propagate."""
    scope = instrument.scope
    meter = provider.get_meter(
        scope.name or _UNNAMED, scope.version or None, scope.schema_url or None, dict(scope.attributes)
    )
    create = getattr(meter, f"create_{instrument.kind}")
    options: dict[str, Any] = {}
    if instrument.kind.startswith("observable_"):
        options["callbacks"] = callbacks
    elif instrument.kind == "histogram":
        options["explicit_bucket_boundaries_advisory"] = instrument.bounds
    return create(instrument.name, unit=instrument.unit, description=instrument.description, **options)


def measuring_method(instrument: InstrumentIdentity, sdk_instrument: Any) -> Callable[..., None] | None:
    """Return the SDK instrument's method that records a measurement, or None if the instrument is observable or missing."""
    if sdk_instrument is None or instrument.kind.startswith("observable_"):
        return None
    name = {"gauge": "set", "histogram": "record"}.get(instrument.kind, "add")
    method: Callable[..., None] = getattr(sdk_instrument, name)
    return method


def _template(instrument: InstrumentIdentity, metric: "Metric", index: int, trial: _Trial) -> Template:
    """Return the stream that a view produces from an instrument.

    The argument `metric` is the metric that the view produced from a measurement of 1.
    """
    from opentelemetry.sdk.metrics.export import ExponentialHistogram, Gauge, Histogram, Sum

    bounds: tuple[float, ...] = ()
    # If a histogram does not record its minimum and maximum, the SDK leaves them infinite.
    record_min_max = math.isfinite(getattr(metric.data.data_points[0], "min", 1))
    match metric.data:
        case Sum(is_monotonic=monotonic):
            observable = "observable_" if instrument.kind.startswith("observable_") else ""
            kind = observable + ("counter" if monotonic else "up_down_counter")
        case Gauge():
            kind = "gauge"
        case Histogram(data_points=points):
            kind, bounds = "histogram", tuple(map(float, points[0].explicit_bounds))
        case ExponentialHistogram(data_points=points):
            kind, bounds = "exponential", (trial.most_buckets(index, points[0].scale), points[0].scale)
        case _:
            raise TypeError(f"unknown aggregation: {type(metric.data).__name__}")
    # The SDK converts names to lower case, but the specification requires the spelling of the first use.
    name = instrument.name if metric.name == instrument.name.lower() else metric.name
    return Template(name, kind, metric.unit or "", metric.description or "", bounds, record_min_max)


def _default(instrument: InstrumentIdentity, *, exponential: bool) -> Template:
    kind = "gauge" if instrument.kind == "observable_gauge" else instrument.kind
    bounds: tuple[float, ...] = ()
    if kind == "histogram" and exponential:
        kind, bounds = "exponential", (_MOST_BUCKETS, _HIGHEST_SCALE)
    elif kind == "histogram":
        bounds = tuple(map(float, _DEFAULT_BOUNDS)) if instrument.bounds is None else instrument.bounds
    return Template(instrument.name, kind, instrument.unit, instrument.description, bounds)
