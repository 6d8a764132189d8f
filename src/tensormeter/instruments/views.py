"""What the user's views make of an instrument.

The SDK's `View` has no public attributes, so a view is asked by trying it: an SDK provider with these views is
given one measurement, and what it collects tells name, unit, kind, buckets and the attributes kept.
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
"""Of the metrics SDK's specification, "Explicit Bucket Histogram Aggregation"."""

_NAMELESS: Final = "unnamed"
"""Instead of an empty name, which makes the SDK's meters do nothing."""

_MOST_BUCKETS: Final = 160
"""The specification's default for each side of an exponential histogram, and ours at most."""

_HIGHEST_SCALE: Final = 20
"""The specification's default."""


@dataclass(frozen=True)
class ScopeIdentity:
    """What tells a meter from others: its instrumentation scope."""

    name: str
    version: str = ""
    schema_url: str = ""
    attributes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class InstrumentIdentity:
    """What tells an instrument from others.

    Attributes:
        kind: `counter`, `up_down_counter`, `gauge`, `histogram`, `observable_counter`, `observable_up_down_counter` or
            `observable_gauge`: the end of the name of the meter's method that makes it.
        name: As first seen.
        unit: Or "".
        description: Or "".
        scope: Its meter's.
        bounds: Of a histogram's buckets, as its author advises; None if he does not.
    """

    kind: str
    name: str
    unit: str
    description: str
    scope: ScopeIdentity
    bounds: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Template:
    """A stream less its attributes: what one view makes of an instrument.

    Attributes:
        name: The stream's.
        kind: The stream's.
        unit: The stream's.
        description: The stream's.
        bounds: The stream's.
        record_min_max: The stream's.
    """

    name: str
    kind: str
    unit: str
    description: str
    bounds: tuple[float, ...] = ()
    record_min_max: bool = True


class Views:
    """The user's views. Any thread."""

    def __init__(self, views: Sequence["View"], exponential: Callable[[], bool] = lambda: False) -> None:
        """
        Args:
            views: The user's.
            exponential: Tells whether histograms have exponential buckets unless a view says otherwise.
        """
        self._views = views
        self._exponential = exponential

    def resolve(self, instrument: InstrumentIdentity, keys: frozenset[str]) -> list[tuple[Template, frozenset[str]]]:
        """The streams of an instrument's measurements with attributes of these keys, and which keys each keeps."""
        exponential = self._exponential()
        if not self._views:
            return [(_default(instrument, exponential=exponential), keys)]
        try:
            trial = _Trial(self._views, instrument, exponential=exponential)
            return [
                (_template(instrument, metric, at, trial), frozenset(metric.data.data_points[0].attributes or {}))
                for at, metric in enumerate(trial.collect(dict.fromkeys(keys, ""), 1))
            ]
        except Exception as error:  # a view, which is the user's code, or a unit that the SDK refuses
            warn_once(
                (Views, instrument),
                "views are not applied to the instrument %r: %s",
                instrument.name,
                error,
                error=error,
            )
            return [(_default(instrument, exponential=exponential), keys)]

    def conflict(self, one: InstrumentIdentity, other: InstrumentIdentity) -> bool:
        """Whether two instruments have streams of the same name that differ otherwise."""
        streams, others = ([stream for stream, _ in self.resolve(item, frozenset())] for item in (one, other))
        return any(a.name.lower() == b.name.lower() and a != b for a in streams for b in others)


class _Trial:
    """An SDK provider with one instrument."""

    def __init__(self, views: Sequence["View"], instrument: InstrumentIdentity, *, exponential: bool) -> None:
        import opentelemetry.sdk.metrics as sdk
        from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
        from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation
        from opentelemetry.sdk.resources import Resource

        kinds = (
            sdk.Counter, sdk.UpDownCounter, sdk.Histogram, sdk.ObservableCounter, sdk.ObservableUpDownCounter,
            sdk.ObservableGauge, sdk._Gauge,
        )  # fmt: skip
        # So that each collection tells of the last measurements only.
        self._reader = InMemoryMetricReader(
            dict.fromkeys(kinds, AggregationTemporality.DELTA),
            {sdk.Histogram: ExponentialBucketHistogramAggregation()} if exponential else None,
        )
        with sdk_enabled():
            provider = sdk.MeterProvider(
                [self._reader],
                Resource.get_empty(),
                exemplar_filter=sdk.AlwaysOffExemplarFilter(),  # without one, an unknown one in the environment raises
                shutdown_on_exit=False,
                views=views,
            )
        self._observations: list[Observation] = []
        instrument_made = create_sdk_instrument(provider, instrument, [lambda options: self._observations])
        self._measure = measuring_method(instrument, instrument_made)

    def collect(self, attributes: dict[str, str], *values: float) -> list["Metric"]:
        """What comes of measurements."""
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

    def most_buckets(self, at: int, scale: int) -> int:
        """The largest number of neighbouring buckets that does not make an exponential histogram lower its scale.

        Args:
            at: Which of the metrics that are collected it is: several can have one name.
            scale: Its highest scale.
        """
        if scale <= 0:
            return _MOST_BUCKETS  # there are not that many buckets to try

        def middle(index: int) -> float:
            return float(2 ** ((index + 0.5) / 2**scale))

        def fits(count: int) -> bool:
            metric = self.collect({}, middle(0), middle(count - 1))[at]
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
    """The SDK's instrument of this identity. It raises what the SDK raises."""
    scope = instrument.scope
    meter = provider.get_meter(
        scope.name or _NAMELESS, scope.version or None, scope.schema_url or None, dict(scope.attributes)
    )
    create = getattr(meter, f"create_{instrument.kind}")
    more: dict[str, Any] = {}
    if instrument.kind.startswith("observable_"):
        more["callbacks"] = callbacks
    elif instrument.kind == "histogram":
        more["explicit_bucket_boundaries_advisory"] = instrument.bounds
    return create(instrument.name, unit=instrument.unit, description=instrument.description, **more)


def measuring_method(instrument: InstrumentIdentity, made: Any) -> Callable[..., None] | None:
    """The method of an SDK instrument that takes measurements; None if it observes, or is none."""
    if made is None or instrument.kind.startswith("observable_"):
        return None
    name = {"gauge": "set", "histogram": "record"}.get(instrument.kind, "add")
    method: Callable[..., None] = getattr(made, name)
    return method


def _template(instrument: InstrumentIdentity, metric: "Metric", at: int, trial: _Trial) -> Template:
    """What a view makes of the instrument, from the metric that it made of one measurement of 1."""
    from opentelemetry.sdk.metrics.export import ExponentialHistogram, Gauge, Histogram, Sum

    bounds: tuple[float, ...] = ()
    # Without minimum and maximum the SDK leaves them at infinity.
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
            kind, bounds = "exponential", (trial.most_buckets(at, points[0].scale), points[0].scale)
        case _:
            raise TypeError(f"an aggregation that makes a {type(metric.data).__name__}")
    # The SDK makes names lower case; the specification keeps an instrument's as it was given first.
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
