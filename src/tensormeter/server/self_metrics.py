"""Metrics of the server itself, which the OpenTelemetry SDK writes to the server's store or sends to another backend.

They are off by default. Metric names follow the semantic conventions, as far as these define them.
"""

import importlib
import logging
import platform
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol, cast, runtime_checkable

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource

from tensormeter.conventions.semconv import RUN_END, RUN_ID, RUN_NAME, RUN_START, SERVICE_INSTANCE_ID, SERVICE_NAME
from tensormeter.environment.variables import importing_sdk, read_seconds
from tensormeter.errors import SettingsError, StoreError
from tensormeter.otlp.batch import Attribute, Event
from tensormeter.otlp.decode import decode_metrics
from tensormeter.otlp.encode import encode_events
from tensormeter.server.config import SelfMetrics
from tensormeter.server.http.request_hooks import Ingested, Listener, Observed
from tensormeter.server.store import Store

with importing_sdk():
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

__all__ = ["PROJECT", "ServerMetrics"]

PROJECT: Final = "tensormeter-server"
"""`service.name` of the server, and therefore the project that contains its metrics."""

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Bucket bounds in seconds that the semantic conventions recommend for http.server.request.duration."""

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})

_log: Final = logging.getLogger(__name__)


@runtime_checkable
class _Buffering(Protocol):
    """A store that buffers points in memory."""

    def pending_points(self) -> int: ...


class ServerMetrics(Listener):
    """Recorder of the server's metrics, from construction until `stop`. Safe on any thread."""

    def __init__(self, store: Store, directory: Path, targets: Sequence[SelfMetrics]) -> None:
        """Start recording. `OTEL_METRIC_EXPORT_INTERVAL` sets the export interval, by default one minute.

        Args:
            store: Store of the server, to which the target `store` writes.
            directory: Folder of the server. The ID of the server's run is derived from the host name and this folder,
                so a restarted server continues its run.
            targets: Destinations of the metrics. OpenTelemetry's environment variables configure `otlp`.

        Raises:
            SettingsError: OpenTelemetry's OTLP exporter is not installed.
        """
        self._store = store
        self._directory = directory
        identity = str(uuid.uuid5(uuid.NAMESPACE_URL, f"tensormeter://{platform.node()}{directory}"))
        resource = Resource.create(
            {
                SERVICE_NAME: PROJECT,
                "service.version": version("tensormeter"),
                SERVICE_INSTANCE_ID: identity,
                "host.name": platform.node(),
                RUN_ID: f"server-{identity[:8]}",
                RUN_NAME: f"server on {platform.node()}",
            }
        )
        self._attributes = cast("Mapping[str, Attribute]", resource.attributes)
        self._stores = "store" in targets
        readers: list[MetricReader] = []
        if self._stores:
            readers.append(_reader(_StoreExporter(store)))
            self._append_event(RUN_START, {"config": {"version": version("tensormeter")}})
        if "otlp" in targets:
            readers.append(_reader(_otlp_exporter()))
        self._provider = MeterProvider(
            readers, resource, exemplar_filter=AlwaysOffExemplarFilter(), shutdown_on_exit=False
        )  # the server has no traces, and an unknown exemplar filter in the environment would raise an error
        meter = self._provider.get_meter("tensormeter.server", version("tensormeter"))
        self._requests = meter.create_histogram(
            "http.server.request.duration",
            "s",
            "Duration of HTTP server requests.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._items = meter.create_counter(
            "tensormeter.server.ingest.items", "{item}", "Received points and log records, by outcome."
        )
        self._bytes = meter.create_counter(
            "tensormeter.server.ingest.io", "By", "Received bytes, before decompression."
        )
        meter.create_observable_gauge(
            "tensormeter.server.store.size", [self._observe_size], "By", "Size of the files in the server's folder."
        )
        if isinstance(store, _Buffering):
            meter.create_observable_gauge(
                "tensormeter.server.store.pending",
                [self._observe_pending],
                "{point}",
                "Points in memory and in the commit log that await compaction.",
            )

    def request(self, observed: Observed) -> None:
        """See `Listener`."""
        attributes: dict[str, str | int] = {
            "http.request.method": observed.method if observed.method in _METHODS else "_OTHER",
            "http.response.status_code": observed.status,
        }
        if observed.route:
            attributes["http.route"] = observed.route
        self._requests.record(observed.seconds, attributes)

    def ingested(self, ingested: Ingested) -> None:
        """See `Listener`."""
        signal = {"tensormeter.signal": ingested.signal}
        self._bytes.add(ingested.received, signal)
        if ingested.duplicate:
            self._items.add(ingested.items, signal | {"tensormeter.outcome": "duplicate"})
            return
        self._items.add(max(ingested.items - ingested.rejected, 0), signal | {"tensormeter.outcome": "stored"})
        if ingested.rejected:
            self._items.add(ingested.rejected, signal | {"tensormeter.outcome": "rejected"})

    def stop(self) -> None:
        """Export the remaining values within five seconds. Call this before the store is closed."""
        self._provider.shutdown(timeout_millis=5000)
        if self._stores:
            self._append_event(RUN_END, {"state": "finished", "message": ""})

    def _observe_size(self, _: CallbackOptions) -> Iterable[Observation]:
        size = 0
        # Without a SQLite store, the folder may not exist.
        for path in self._directory.iterdir() if self._directory.is_dir() else ():
            try:
                size += path.stat().st_size
            except FileNotFoundError:  # SQLite deleted a temporary file
                continue
        return [Observation(size)]

    def _observe_pending(self, _: CallbackOptions) -> Iterable[Observation]:
        assert isinstance(self._store, _Buffering)
        return [Observation(self._store.pending_points())]

    def _append_event(self, name: str, body: dict[str, Any]) -> None:
        events = [Event(name, time.time_ns(), body)]
        try:
            self._store.append_events([(self._attributes, events)], payload=encode_events(self._attributes, events))
        except StoreError as error:
            _log.warning("tensormeter: could not store the server's own event %s: %s", name, error)


class _StoreExporter(MetricExporter):
    """Exporter that writes metrics to the store as if they had arrived in an OTLP request."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any) -> MetricExportResult:
        payload = encode_metrics(metrics_data).SerializeToString()
        try:
            self._store.append_metrics(decode_metrics(payload), payload=payload)
        except StoreError as error:
            _log.warning("tensormeter: could not store the server's own metrics: %s", error)
            return MetricExportResult.FAILURE
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        pass


def _reader(exporter: MetricExporter) -> MetricReader:
    """Return a periodic reader with the export interval and timeout from the environment.

    Invalid values are ignored with a warning. The SDK itself would raise an error.
    """
    interval = read_seconds("OTEL_METRIC_EXPORT_INTERVAL", 0.1, 86_400, "a minute")
    timeout = read_seconds("OTEL_METRIC_EXPORT_TIMEOUT", 0.1, 86_400, "half a minute", zero=86_400.0)
    return PeriodicExportingMetricReader(exporter, (interval or 60.0) * 1000, (timeout or 30.0) * 1000)


def _otlp_exporter() -> MetricExporter:
    try:
        with importing_sdk():
            module = importlib.import_module("opentelemetry.exporter.otlp.proto.http.metric_exporter")
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"self_metrics: otlp needs {error.name!r}; run pip install opentelemetry-exporter-otlp-proto-http"
        ) from None
    exporter: MetricExporter = module.OTLPMetricExporter()
    return exporter
