"""The `prometheus` destination: a scrape endpoint in the agent that serves the last value of every series.

Prometheus stores one value per scrape and misses all values between scrapes. To store all values, use OTLP or remote
write. The endpoint exists while the agent runs. A retried request changes nothing.
"""

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from tensormeter.environment import variables
from tensormeter.errors import SettingsError
from tensormeter.exporter import Accepted, ExporterConfig, Outcome, Request
from tensormeter.logger import get_logger
from tensormeter.otlp.batch import STEP_METRIC, Distribution, Gauge, Scope, Series, Sum, Temporality
from tensormeter_exporters.base import DecodingExporter
from tensormeter_exporters.otlp_series import ProcessRef, SteppedSeries, read_metrics, scalars
from tensormeter_exporters.prometheus.classic_buckets import ClassicBuckets
from tensormeter_exporters.prometheus.names import IDENTITY_LABELS, Kind, LabelNames, MetricNames, Origin
from tensormeter_exporters.refused_items import RefusedItems

__all__ = ["PrometheusExporter"]

logger: Final = get_logger("tensormeter.agent")

_LOOPBACK: Final = "127.0.0.1"
_PORT: Final = "9464"
_PORTS: Final = 16

_STEP: Final = Origin(STEP_METRIC, "", "gauge")
_STEP_FAMILY: Final = "tensormeter_step"
_REFUSED_FAMILY: Final = "tensormeter_prometheus_refused"
_REFUSED: Final = Origin(_REFUSED_FAMILY, " of this destination", "counter")

_Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Point:
    """One point of a series, converted to Prometheus samples.

    Attributes:
        time: Unix time in nanoseconds.
        samples: Tuples of name suffix, upper bound of the bucket ("" for other samples), and value.
    """

    time: int
    samples: tuple[tuple[str, str, float], ...]


@dataclass
class _Family:
    """A metric family: all series with one Prometheus name.

    Attributes:
        name: Prometheus name, without the suffix `_total` of counters.
        help: Help text of the family.
        names: Names of the family's labels.
        points: Labels and last point of each series.
        owners: Series that uses each set of labels. The sets contain no empty labels, because Prometheus treats them as
            missing.
        warned: Whether a warning about several series with the same labels has been logged.
    """

    name: str
    help: str
    names: LabelNames = field(default_factory=LabelNames)
    points: dict["_SeriesKey", tuple[_Labels, _Point]] = field(default_factory=dict)
    owners: dict[frozenset[tuple[str, str]], "_SeriesKey"] = field(default_factory=dict)
    warned: bool = False


@dataclass(frozen=True)
class _SeriesKey:
    """Identity of a series within its family.

    Attributes:
        attributes: Attribute keys with the `repr` of their values, so that True differs from 1.
        texts: Attribute keys with their label values.
        sender: Process that sent the series.
        scope: Name and version of the instrumentation scope.
        scope_details: Names and values of labels for the scope's other fields.
    """

    attributes: tuple[tuple[str, str], ...]
    texts: tuple[tuple[str, str], ...]
    sender: ProcessRef
    scope: tuple[str, str] = ("", "")
    scope_details: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, series: Series, sender: ProcessRef) -> "_SeriesKey":
        items = sorted(series.attributes.items())
        return cls(
            tuple((key, repr(value)) for key, value in items),
            tuple((key, str(value)) for key, value in items),
            sender,
            (series.scope.name, series.scope.version),
            _scope_details(series.scope),
        )


def _form(series: Series) -> str:
    if isinstance(series, Sum):
        return f"Sum {series.temporality.name} {series.monotonic}"
    if isinstance(series, Distribution):
        return f"{type(series).__name__} {series.temporality.name}"
    return "" if isinstance(series, Gauge) else type(series).__name__


def _scope_details(scope: Scope) -> tuple[tuple[str, str], ...]:
    names = LabelNames().find(scope.attributes)
    details = (("schema_url", scope.schema_url), *((names[key], str(scope.attributes[key])) for key in sorted(names)))
    return tuple((f"otel_scope_{name}", text) for name, text in details if text)


class _LastValues(Collector):
    """Last values of all series. The delivery thread updates them, and scrapes read them."""

    def __init__(self, destination: str, max_series: int) -> None:
        self._destination = destination
        self._max_series = max_series
        self._lock = threading.Lock()
        self._names = MetricNames([(_STEP, _STEP_FAMILY), (_REFUSED, _REFUSED_FAMILY)])
        self._families: dict[Origin, _Family] = {_STEP: _Family(_STEP_FAMILY, "Step of the training loop.")}
        self._series = 0
        self._refused = 0

    def put(self, origin: Origin, key: _SeriesKey, description: str, point: _Point) -> bool:
        """Store a point unless a later point of its series is already stored.

        Return False, and refuse the point, if there are too many series or another series has the same labels.
        """
        with self._lock:
            family = self._families.get(origin)
            _, kept = (family.points.get(key) if family else None) or (None, None)
            more = len(point.samples) - (len(kept.samples) if kept else 0)
            if self._series + more > self._max_series:
                self._refused += 1
                return False
            if kept is not None and kept.time > point.time:
                return True
            family = family or self._begin(origin, description)
            labels = self._labels(family, key)
            if labels is None:
                self._refused += 1
                return False
            self._series += more
            family.points[key] = labels, point
            return True

    def _begin(self, origin: Origin, description: str) -> _Family:
        """Create a family with a unique name."""
        name, rival = self._names.find(origin)
        self._names.take(origin, name)
        if rival is not None:
            logger.warning(
                "%s: metrics %r and %r would both become %r; the second one is exported as %r",
                *(self._destination, rival.text_with_unit, origin.text_with_unit, origin.plain_name, name),
            )
        shown = (
            [origin.text] if origin.statistic or origin.plain_name != origin.metric or name != origin.plain_name else []
        )
        family = _Family(name, ": ".join([*shown, *([description] if description else [])]) or name)
        self._families[origin] = family
        return family

    def _labels(self, family: _Family, key: _SeriesKey) -> _Labels | None:
        """Return unique labels for a series, or None if another series of the family has the same labels."""
        if key in family.points:
            return family.points[key][0]
        names = family.names.find(name for name, _ in key.texts)
        sender = key.sender
        identity = zip(IDENTITY_LABELS, (sender.project, sender.run, sender.process), strict=True)
        labels = (*((names[name], text) for name, text in key.texts), *identity)
        scoped = (*labels, ("otel_scope_name", key.scope[0]), ("otel_scope_version", key.scope[1]))
        taken = {name for name, _ in scoped}
        detailed = (*scoped, *((name, text) for name, text in key.scope_details if name not in taken))
        for wider in (labels, scoped, detailed):
            visible = frozenset((name, text) for name, text in wider if text)
            if visible not in family.owners:
                family.owners[visible] = key
                family.names.take(names)
                return wider
            owner = family.owners[visible]
            if (owner.scope, owner.scope_details) == (key.scope, key.scope_details):
                break
        if not family.warned:
            family.warned = True
            logger.warning(
                "%s: rejected series of %r with the same labels as another series: %s; give the series "
                "different attributes",
                *(self._destination, family.name, dict(labels)),
            )
        return None

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            families = sorted(
                (family.name, origin.kind, family.help, list(family.points.values()))
                for origin, family in self._families.items()
                if family.points
            )
            refused = self._refused
        for name, kind, text, points in families:
            family = Metric(name, text, kind)
            for labels, point in points:
                for suffix, bound, value in point.samples:
                    family.add_sample(name + suffix, dict(labels) | ({"le": bound} if bound else {}), value)
            yield family
        dropped = CounterMetricFamily(
            _REFUSED_FAMILY,
            "Points that were refused because of too many series, or because their labels were not unique.",
        )
        dropped.add_metric([], refused)
        yield dropped


def _host() -> str:
    """Return the address in OpenTelemetry's variable if this machine has that address, otherwise the loopback address."""
    variable = "OTEL_EXPORTER_PROMETHEUS_HOST"
    host = variables.read(variable)
    if not host:
        return _LOOPBACK
    try:
        # The server also uses the first address.
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(address)
    except (OSError, UnicodeError):  # UnicodeError: a label that is too long
        variables.ignore(variable, "an address of this machine", _LOOPBACK)
        return _LOOPBACK
    return host


def _port() -> str:
    port = variables.read_count("OTEL_EXPORTER_PROMETHEUS_PORT", 65535, _PORT)
    return _PORT if port is None else str(port)


class PrometheusExporter(DecodingExporter):
    """The exporter of the `prometheus` destination. It implements `tensormeter.exporter.Exporter`.

    Options:
        host: Address to listen on. Default: `OTEL_EXPORTER_PROMETHEUS_HOST` or the loopback address.
        port: First of sixteen ports to try, or 0 for any free port. Each agent on a machine uses the first free port.
            Default: `OTEL_EXPORTER_PROMETHEUS_PORT` or 9464.
        max_series: Maximum number of series. Each bucket of a distribution is a series. Points of further series are
            counted as refused. Default: 10000.
        max_buckets: Maximum number of buckets per distribution, at least 6. Default: 32.
    """

    def __init__(self, config: ExporterConfig) -> None:
        options = config.options_or(
            host=_host(),
            port=_port(),
            max_series="10000",
            max_buckets="32",
        )
        for name, least in (("port", 0), ("max_series", 0), ("max_buckets", 6)):
            if not options[name].isdecimal() or int(options[name]) < least:
                raise SettingsError(
                    f"{config.destination}.{name}: expected a number of at least {least}, got {options[name]!r}"
                )
        self._max_buckets = int(options["max_buckets"])
        self._buckets: dict[tuple[Origin, _SeriesKey], ClassicBuckets] = {}
        self._last = _LastValues(config.destination, int(options["max_series"]))
        registry = CollectorRegistry()
        registry.register(self._last)
        first = int(options["port"])
        for port in range(first, first + (_PORTS if first else 1)):
            try:
                self._server, self._thread = start_http_server(port, options["host"], registry)
                break
            except (OSError, OverflowError) as error:  # for ports above 65535
                refusal = error
        else:
            raise SettingsError(
                f"{config.destination}: cannot listen on any port from {first} to {port}: {refusal}; choose "
                f"another port with {config.destination}.port"
            )
        self.port = self._server.server_port
        logger.info(
            "%s: serving metrics for Prometheus at http://%s:%d/metrics", config.destination, options["host"], self.port
        )

    def deliver(self, request: Request) -> Outcome:
        if request.signal == "logs":
            return Accepted()  # Prometheus has no events
        ordered = sorted((stepped for stepped in read_metrics(request) if len(stepped.steps)), key=_by_precedence)
        # Logged metrics come first, because a statistic may have the same name (`grad/mean`).
        refused = RefusedItems()
        for statistics in (False, True):
            for stepped in ordered:
                with refused.item(stepped.name[:100]):
                    left_out = self._put(stepped, statistics=statistics)
                    if left_out:
                        refused.add("too many series (see the option max_series), or labels not unique", left_out)
        return Accepted(refused.count, refused.reason)

    def shutdown(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _put(self, stepped: SteppedSeries, *, statistics: bool) -> int:
        """Store the last point of a series.

        Args:
            stepped: Series with the point.
            statistics: Whether to store statistics of the series, such as the means of distributions, instead of the
                series itself.

        Returns:
            Number of refused points.
        """
        series = stepped.series
        at = int(series.times.argmax())
        time, key = int(series.times[at]), _SeriesKey.of(series, stepped.sender)
        if stepped.stepped[at] and not statistics:
            self._put_step(stepped, at)
        refused = 0
        if isinstance(series, Distribution) and not statistics:
            refused += 0 if self._put_distribution(series, at, key) else len(series.times)
        counter = isinstance(series, Sum) and series.monotonic and series.temporality is Temporality.CUMULATIVE
        for numbers in scalars(stepped):
            suffix = numbers.name.removeprefix(stepped.name)
            known = not numbers.present[at] or (isinstance(series, Distribution) and suffix == "/count")
            if known or bool(suffix) != statistics:
                continue
            point = _Point(time, (("_total" if counter else "", "", float(numbers.values[at])),))
            origin = Origin(series.name, suffix, "counter" if counter else "gauge", series.unit, _form(series))
            refused += 0 if self._last.put(origin, key, series.description, point) else len(numbers.values)
        return refused

    def _put_distribution(self, series: Distribution, at: int, key: _SeriesKey) -> bool:
        """Store a distribution as a histogram if it is cumulative, else as a gauge histogram. Return False if it is refused."""
        cumulative = series.temporality is Temporality.CUMULATIVE
        kind: Kind = "histogram" if cumulative else "gaugehistogram"
        origin = Origin(series.name, "", kind, series.unit, _form(series))
        buckets = self._buckets.get((origin, key)) or ClassicBuckets(self._max_buckets)
        samples = [("_bucket", _number(bound), float(count)) for bound, count in buckets.of(series, at)]
        samples.append(("_count" if cumulative else "_gcount", "", float(series.counts[at])))
        if not np.isnan(series.sums[at]):
            samples.append(("_sum" if cumulative else "_gsum", "", float(series.sums[at])))
        point = _Point(int(series.times[at]), tuple(samples))
        kept = self._last.put(origin, key, series.description, point)
        if kept:
            self._buckets[origin, key] = buckets
        return kept

    def _put_step(self, stepped: SteppedSeries, at: int) -> None:
        """Store the step as a separate gauge, because a label would create a series per step."""
        point = _Point(int(stepped.series.times[at]), (("", "", float(stepped.steps[at])),))
        self._last.put(_STEP, _SeriesKey((), (), stepped.sender), "", point)


def _number(bound: float) -> str:
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]


def _by_precedence(stepped: SteppedSeries) -> tuple[bool, Origin]:
    """Return a sort key, so that the chosen names do not depend on the order in which series were logged."""
    origin = Origin(stepped.series.name, "", "gauge", stepped.series.unit)
    return not origin.exact, origin
