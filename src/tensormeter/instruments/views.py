"""What the user's views make of an instrument.

The SDK's `View` has no public attributes, so a view is asked by trying it: an SDK provider of our own, with these views,
is given one measurement, and what it collects tells name, unit, kind, buckets and the attributes kept.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.metrics import CallbackOptions, Observation

from tensormeter.instruments.registry import warn_once

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric
    from opentelemetry.sdk.metrics.view import View

__all__ = ["InstrumentIdentity", "ScopeIdentity", "Template", "Views"]

_DEFAULT_BOUNDS: Final = (0, 5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10000)
"""Of the metrics SDK's specification, "Explicit Bucket Histogram Aggregation"."""

_MOST_BUCKETS: Final = 160
"""The specification's default for each side of an exponential histogram, and ours at most."""


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
    """

    name: str
    kind: str
    unit: str
    description: str
    bounds: tuple[float, ...] = ()


class Views:
    """The user's views. Used under the lock."""

    def __init__(self, views: Sequence["View"]) -> None:
        self._views = views
        self._scratch: Any = None
        self._reader: InMemoryMetricReader
        self._asked: list[Observation] = []
        self._asking = ""

    def resolve(self, instrument: InstrumentIdentity, keys: frozenset[str]) -> list[tuple[Template, frozenset[str]]]:
        """The streams of an instrument's measurements with attributes of these keys, and which keys each keeps."""
        if not self._views:
            return [(_default(instrument), keys)]
        try:
            return self._probe(instrument, dict.fromkeys(keys, ""))
        except Exception as error:  # a view, which is the user's code, or a name that the SDK refuses
            warn_once(
                (Views, instrument),
                "views are not applied to the instrument %r: %s",
                instrument.name,
                error,
                error=error,
            )
            return [(_default(instrument), keys)]

    def _probe(
        self, instrument: InstrumentIdentity, attributes: dict[str, str]
    ) -> list[tuple[Template, frozenset[str]]]:
        return [
            (self._template(instrument, metric), frozenset(metric.data.data_points[0].attributes or {}))
            for metric in self._try(instrument, attributes, [1])
        ]

    def _template(self, instrument: InstrumentIdentity, metric: "Metric") -> Template:
        from opentelemetry.sdk.metrics.export import ExponentialHistogram, Gauge, Histogram, Sum

        bounds: tuple[float, ...] = ()
        match metric.data:
            case Sum(is_monotonic=monotonic):
                observable = "observable_" if instrument.kind.startswith("observable_") else ""
                kind = observable + ("counter" if monotonic else "up_down_counter")
            case Gauge():
                kind = "gauge"
            case Histogram(data_points=points):
                kind, bounds = "histogram", tuple(points[0].explicit_bounds)
            case ExponentialHistogram(data_points=points):
                kind, bounds = "exponential", (self._most_buckets(instrument, points[0].scale), points[0].scale)
            case _:
                raise TypeError(f"an aggregation that makes a {type(metric.data).__name__}")
        # The SDK makes names lower case; the specification keeps an instrument's as it was given first.
        name = instrument.name if metric.name == instrument.name.lower() else metric.name
        return Template(name, kind, metric.unit or "", metric.description or "", bounds)

    def _most_buckets(self, instrument: InstrumentIdentity, scale: int) -> int:
        """The largest number of neighbouring buckets that does not make an exponential histogram lower its scale."""

        def middle(index: int) -> float:
            return float(2 ** ((index + 0.5) / 2.0**scale))

        def fits(count: int) -> bool:
            try:
                last = middle(count - 1)
            except OverflowError:
                return False
            for metric in self._try(instrument, {}, [middle(0), last]):
                point: Any = metric.data.data_points[0]
                if getattr(point, "scale", scale) < scale:
                    return False
            return True

        low, high = 2, _MOST_BUCKETS
        while low < high:
            count = (low + high + 1) // 2
            low, high = (count, high) if fits(count) else (low, count - 1)
        return low if scale > 0 else _MOST_BUCKETS  # at lower scales there are not that many buckets to try

    def _try(self, instrument: InstrumentIdentity, attributes: dict[str, str], values: list[float]) -> list["Metric"]:
        """What an SDK makes of measurements."""
        self._begin()
        scope = instrument.scope
        meter = self._scratch.get_meter(scope.name, scope.version, scope.schema_url, dict(scope.attributes))
        create: Callable[..., Any] = getattr(meter, f"create_{instrument.kind}")
        about = {"unit": instrument.unit, "description": instrument.description}
        if instrument.kind.startswith("observable_"):
            self._asked = [Observation(value, attributes) for value in values]
            create(instrument.name, callbacks=[self._answer(instrument.name)], **about)
        elif instrument.kind == "histogram":
            histogram = create(instrument.name, explicit_bucket_boundaries_advisory=instrument.bounds, **about)
            for value in values:
                histogram.record(value, attributes)
        else:
            made = create(instrument.name, **about)
            for value in values:
                (made.set if instrument.kind == "gauge" else made.add)(value, attributes)
        self._asking = instrument.name
        data = self._reader.get_metrics_data()
        self._asking = ""
        return [
            metric
            for resource in (data.resource_metrics if data else ())
            for scope_metrics in resource.scope_metrics
            for metric in scope_metrics.metrics
        ]

    def _answer(self, name: str) -> Callable[[CallbackOptions], Iterator[Observation]]:
        def observe(options: CallbackOptions) -> Iterator[Observation]:
            if self._asking == name:
                yield from self._asked

        return observe

    def _begin(self) -> None:
        if self._scratch is not None:
            return
        import opentelemetry.sdk.metrics as sdk
        from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
        from opentelemetry.sdk.resources import Resource

        kinds = (
            sdk.Counter, sdk.UpDownCounter, sdk.Histogram, sdk.ObservableCounter, sdk.ObservableUpDownCounter,
            sdk.ObservableGauge, sdk._Gauge,
        )  # fmt: skip
        # So that each collection tells of the last measurement only.
        self._reader = InMemoryMetricReader(dict.fromkeys(kinds, AggregationTemporality.DELTA))
        self._scratch = sdk.MeterProvider(
            [self._reader], Resource.get_empty(), shutdown_on_exit=False, views=self._views
        )


def _default(instrument: InstrumentIdentity) -> Template:
    kind = "gauge" if instrument.kind == "observable_gauge" else instrument.kind
    bounds: tuple[float, ...] = ()
    if kind == "histogram":
        bounds = tuple(map(float, _DEFAULT_BOUNDS)) if instrument.bounds is None else instrument.bounds
    return Template(instrument.name, kind, instrument.unit, instrument.description, bounds)
