"""A scrape endpoint in the agent, with the last value of every series.

Prometheus keeps one value for each scrape, so what lies between two scrapes is not there: for every value, send OTLP or
remote write. The endpoint ends with the agent. A request that comes again changes nothing.
"""

import logging
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from tensormeter.errors import EncodingError, SettingsError
from tensormeter.exporter import Accepted, ExporterConfig, Outcome, Rejected, Request
from tensormeter.otlp.batch import Distribution, Sum, Temporality
from tensormeter_exporters.classic_buckets import ClassicBuckets
from tensormeter_exporters.points import Speaker, SteppedSeries, read_metrics, scalars

__all__ = ["PrometheusExporter"]

logger: Final = logging.getLogger("tensormeter.agent")

_PORTS: Final = 16
_NAME: Final = re.compile(r"[^a-zA-Z0-9_:]")
_LABEL: Final = re.compile(r"[^a-zA-Z0-9_]")

_Labels = tuple[tuple[str, str], ...]
_Kind = Literal["gauge", "counter", "histogram", "gaugehistogram"]


@dataclass(frozen=True)
class _Point:
    """What one point of a series shows.

    Attributes:
        kind: Of the family.
        time: In nanoseconds.
        samples: What stands behind the name, the upper bound of a bucket or "", and the value.
    """

    kind: _Kind
    time: int
    samples: tuple[tuple[str, str, float], ...]


class _LastValues(Collector):
    """Written by delivery's thread, read by scrapes."""

    def __init__(self, max_series: int) -> None:
        self._max_series = max_series
        self._lock = threading.Lock()
        self._families: dict[str, tuple[_Kind, str, dict[_Labels, _Point]]] = {}
        self._series = 0
        self._refused = 0

    def put(self, name: str, labels: _Labels, description: str, point: _Point) -> bool:
        """Keep the point unless a later one is there. False if there is no room, or the name is taken by another kind."""
        with self._lock:
            kind, _, points = self._families.get(name, (point.kind, description, {}))
            kept = points.get(labels)
            more = len(point.samples) - (len(kept.samples) if kept else 0)
            if kind != point.kind or self._series + more > self._max_series:
                self._refused += 1
                return False
            if kept is None or kept.time <= point.time:
                self._families.setdefault(name, (kind, description, points))
                self._series += more
                points[labels] = point
            return True

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            families = [
                (name, kind, description, list(points.items()))
                for name, (kind, description, points) in sorted(self._families.items())
            ]
            refused = self._refused
        for name, kind, description, points in families:
            base = name.removesuffix("_total") if kind == "counter" else name
            family = Metric(base, description or name, kind)
            for labels, point in points:
                for suffix, bound, value in point.samples:
                    family.add_sample(base + suffix, dict(labels) | ({"le": bound} if bound else {}), value)
            yield family
        dropped = CounterMetricFamily("tensormeter_prometheus_refused", "Points of series that there was no room for.")
        dropped.add_metric([], refused)
        yield dropped


class PrometheusExporter:
    """See `tensormeter.exporter.Exporter` for the contract.

    Options:
        host: Address to listen on; loopback unless it says otherwise (`OTEL_EXPORTER_PROMETHEUS_HOST`).
        port: First port to try; each agent on a machine takes the first that is free, of sixteen
            (`OTEL_EXPORTER_PROMETHEUS_PORT`). 0 takes any.
        max_series: Series that are kept, at most; what is beyond is counted. Each bucket of a distribution is one.
        max_buckets: Buckets of a distribution, at most; from 6.
    """

    def __init__(self, config: ExporterConfig) -> None:
        options = config.options_or(
            host=os.environ.get("OTEL_EXPORTER_PROMETHEUS_HOST") or "127.0.0.1",
            port=os.environ.get("OTEL_EXPORTER_PROMETHEUS_PORT") or "9464",
            max_series="10000",
            max_buckets="32",
        )
        for name, least in (("port", 0), ("max_series", 0), ("max_buckets", 6)):
            if not options[name].isdecimal() or int(options[name]) < least:
                raise SettingsError(
                    f"{config.destination}.{name}: expected a number from {least}, got {options[name]!r}"
                )
        self._max_buckets = int(options["max_buckets"])
        self._buckets: dict[tuple[str, _Labels], ClassicBuckets] = {}
        self._last = _LastValues(int(options["max_series"]))
        registry = CollectorRegistry()
        registry.register(self._last)
        first = int(options["port"])
        for port in range(first, first + (_PORTS if first else 1)):
            try:
                self._server, self._thread = start_http_server(port, options["host"], registry)
                break
            except OSError as error:
                refusal = error
        else:
            raise SettingsError(f"{config.destination}: none of ports {first} to {port} can be had: {refusal}")
        self.port = self._server.server_port
        logger.info(
            "%s: metrics for Prometheus at http://%s:%d/metrics", config.destination, options["host"], self.port
        )

    def export(self, request: Request) -> Outcome:
        if request.signal == "logs":
            return Accepted()  # there is no place for events in Prometheus
        try:
            found = read_metrics(request)
        except (EncodingError, EOFError, OSError) as error:
            return Rejected(str(error))
        refused = sum(self._put(stepped) for stepped in found if len(stepped.steps))
        return Accepted(refused, "no room: see the option max_series" if refused else "")

    def shutdown(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _put(self, stepped: SteppedSeries) -> int:
        """Returns the number of points that there was no room for."""
        series = stepped.series
        at = int(series.times.argmax())
        labels = _labels(stepped)
        if stepped.stepped[at]:
            self._put_step(stepped, at)
        counter = isinstance(series, Sum) and series.monotonic and series.temporality is Temporality.CUMULATIVE
        refused = 0
        for numbers in scalars(stepped):
            suffix = numbers.name.removeprefix(stepped.name)
            if not numbers.present[at] or (isinstance(series, Distribution) and suffix == "/count"):
                continue
            value = float(numbers.values[at])
            point = _Point(
                "counter" if counter else "gauge", int(series.times[at]), (("_total" if counter else "", "", value),)
            )
            kept = self._last.put(_metric_name(series.name + suffix), labels, series.description, point)
            refused += 0 if kept else len(numbers.values)
        if isinstance(series, Distribution):
            refused += 0 if self._put_distribution(series, at, labels) else len(series.times)
        return refused

    def _put_distribution(self, series: Distribution, at: int, labels: _Labels) -> bool:
        """What counts since the beginning is a histogram, what was logged at one instant a gauge histogram."""
        name = _metric_name(series.name)
        buckets = self._buckets.get((name, labels)) or ClassicBuckets(self._max_buckets)
        cumulative = series.temporality is Temporality.CUMULATIVE
        samples = [("_bucket", _number(bound), float(count)) for bound, count in buckets.of(series, at)]
        samples.append(("_count" if cumulative else "_gcount", "", float(series.counts[at])))
        if not np.isnan(series.sums[at]):
            samples.append(("_sum" if cumulative else "_gsum", "", float(series.sums[at])))
        point = _Point("histogram" if cumulative else "gaugehistogram", int(series.times[at]), tuple(samples))
        kept = self._last.put(name, labels, series.description, point)
        if kept:
            self._buckets[name, labels] = buckets
        return kept

    def _put_step(self, stepped: SteppedSeries, at: int) -> None:
        """The step is a gauge of its own, never a label."""
        point = _Point("gauge", int(stepped.series.times[at]), (("", "", float(stepped.steps[at])),))
        self._last.put("tensormeter_step", _identity(stepped.speaker), "Step of the training loop.", point)


def _number(bound: float) -> str:
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]


def _identity(speaker: Speaker) -> _Labels:
    return ("project", speaker.project), ("run_id", speaker.run), ("process", speaker.process)


def _labels(stepped: SteppedSeries) -> _Labels:
    found = {_LABEL.sub("_", key): str(value) for key, value in stepped.series.attributes.items()}
    named = {f"_{key}" if key[:1].isdigit() else key: value for key, value in found.items()}
    return tuple((named | dict(_identity(stepped.speaker))).items())


def _metric_name(name: str) -> str:
    clean = _NAME.sub("_", name)
    return f"_{clean}" if clean[:1].isdigit() else clean
