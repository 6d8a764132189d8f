"""A scrape endpoint in the agent, with the last value of every series.

Prometheus keeps one value for each scrape, so what lies between two scrapes is not there: for every value, send OTLP or
remote write. The endpoint ends with the agent. A request that comes again changes nothing.
"""

import logging
import os
import re
import threading
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tensormeter.errors import EncodingError, SettingsError
from tensormeter.exporter import Accepted, ExporterConfig, Outcome, Rejected, Request
from tensormeter.otlp.batch import Sum, Temporality
from tensormeter_exporters.points import Speaker, SteppedSeries, read_metrics, scalars

__all__ = ["PrometheusExporter"]

logger: Final = logging.getLogger("tensormeter.agent")

_PORTS: Final = 16
_NAME: Final = re.compile(r"[^a-zA-Z0-9_:]")
_LABEL: Final = re.compile(r"[^a-zA-Z0-9_]")

_Labels = tuple[tuple[str, str], ...]


class _LastValues(Collector):
    """Written by delivery's thread, read by scrapes."""

    def __init__(self, max_series: int) -> None:
        self._max_series = max_series
        self._lock = threading.Lock()
        self._families: dict[str, tuple[bool, str, dict[_Labels, tuple[int, float]]]] = {}
        self._series = 0
        self._refused = 0

    def put(self, name: str, *, counter: bool, description: str, labels: _Labels, time: int, value: float) -> bool:
        """Keep the value unless a later one is there. False if there is no room, or the name is taken by another kind."""
        with self._lock:
            family = self._families.get(name)
            if family is None:
                if self._series >= self._max_series:
                    self._refused += 1
                    return False
                family = self._families[name] = (counter, description, {})
            kept_counter, _, values = family
            kept = values.get(labels)
            if kept_counter != counter or (kept is None and self._series >= self._max_series):
                self._refused += 1
                return False
            self._series += kept is None
            if kept is None or kept[0] <= time:
                values[labels] = time, value
            return True

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            families = [
                (name, counter, description, list(values.items()))
                for name, (counter, description, values) in sorted(self._families.items())
            ]
            refused = self._refused
        for name, counter, description, values in families:
            kind = CounterMetricFamily if counter else GaugeMetricFamily
            family: Metric = kind(name, description or name)
            sample = f"{family.name}_total" if counter else name
            for labels, (_, value) in values:
                family.add_sample(sample, dict(labels), value)
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
        max_series: Series that are kept, at most; what is beyond is counted.
    """

    def __init__(self, config: ExporterConfig) -> None:
        options = config.options_or(
            host=os.environ.get("OTEL_EXPORTER_PROMETHEUS_HOST") or "127.0.0.1",
            port=os.environ.get("OTEL_EXPORTER_PROMETHEUS_PORT") or "9464",
            max_series="10000",
        )
        for name in ("port", "max_series"):
            if not options[name].isdecimal():
                raise SettingsError(f"{config.destination}.{name}: expected a number, got {options[name]!r}")
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
        counter = isinstance(series, Sum) and series.monotonic and series.temporality is Temporality.CUMULATIVE
        at = int(series.times.argmax())
        refused = 0
        suffixes = {numbers.name.removeprefix(stepped.name): numbers.values for numbers in scalars(stepped)}
        labels = _labels(stepped)
        if stepped.stepped[at]:
            self._put_step(stepped, at)
        for suffix, values in suffixes.items():
            kept = self._last.put(
                _metric_name(series.name + suffix),
                counter=counter,
                description=series.description,
                labels=labels,
                time=int(series.times[at]),
                value=float(values[at]),
            )
            refused += 0 if kept else len(values)
        return refused

    def _put_step(self, stepped: SteppedSeries, at: int) -> None:
        """The step is a gauge of its own, never a label."""
        self._last.put(
            "tensormeter_step",
            counter=False,
            description="Step of the training loop.",
            labels=_identity(stepped.speaker),
            time=int(stepped.series.times[at]),
            value=float(stepped.steps[at]),
        )


def _identity(speaker: Speaker) -> _Labels:
    return ("project", speaker.project), ("run_id", speaker.run), ("process", speaker.process)


def _labels(stepped: SteppedSeries) -> _Labels:
    found = {_LABEL.sub("_", key): str(value) for key, value in stepped.series.attributes.items()}
    named = {f"_{key}" if key[:1].isdigit() else key: value for key, value in found.items()}
    return tuple((named | dict(_identity(stepped.speaker))).items())


def _metric_name(name: str) -> str:
    clean = _NAME.sub("_", name)
    return f"_{clean}" if clean[:1].isdigit() else clean
