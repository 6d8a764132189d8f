"""An OpenTelemetry SDK exporter that sends to the experiment server: `OTEL_METRICS_EXPORTER=tensormeter`.

It is meant for programs that use OpenTelemetry's instruments without `tensormeter.init`. The SDK's periodic reader
neither retries nor stores anything on disk. Therefore, this exporter retries with backoff until the reader's timeout
expires. Points that have not been delivered by then are lost, and an error is logged. Retries carry the same ID, so the
server deduplicates them.
"""

import gzip
import os
import threading
import time
import uuid
import weakref
from typing import Any, Final

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData

from tensormeter.environment.variables import importing_sdk
from tensormeter.exporter import Accepted, ExporterConfig, Request, Retry
from tensormeter.logger import get_logger
from tensormeter.retrying import exponential_delays, retry_delay
from tensormeter.settings import Settings
from tensormeter_exporters.experiment import ExperimentExporter

with importing_sdk():
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

__all__ = ["TensormeterMetricExporter"]

logger: Final = get_logger()

_LONGEST_DELAY: Final = 8
_SHORTEST_ATTEMPT: Final = 0.1


class TensormeterMetricExporter(MetricExporter):
    """SDK exporter that sends metrics to the experiment server.

    The server is configured by `TENSORMETER_ENDPOINT` and `TENSORMETER_TOKEN`, or by `OTEL_EXPORTER_OTLP_ENDPOINT` and
    the related variables.

    `export` blocks until the server responds or the timeout expires; `shutdown` ends the wait. A forked child opens its
    own connection.

    Raises:
        SettingsError: A `TENSORMETER_*` variable is invalid.
    """

    def __init__(self) -> None:
        super().__init__()
        settings = Settings()
        self._config = ExporterConfig(
            endpoint=settings.endpoint,
            token=settings.current_token(),
            timeout=settings.export_timeout,
        )
        self._open()
        self._stopped = threading.Event()
        this = weakref.WeakMethod(self._open)
        os.register_at_fork(after_in_child=lambda: (open_again := this()) and open_again())

    def _open(self) -> None:
        """Create the connection and its lock. A forked child needs a new lock, because the inherited one may be held."""
        self._exporter = ExperimentExporter(self._config)
        self._lock = threading.Lock()

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any) -> MetricExportResult:
        body = gzip.compress(encode_metrics(metrics_data).SerializeToString(), 1)
        points = sum(
            len(metric.data.data_points)
            for resource in metrics_data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        )
        if not points:
            return MetricExportResult.SUCCESS
        request = Request(uuid.uuid4().hex, "metrics", body, points)
        deadline = time.monotonic() + timeout_millis / 1000
        with self._lock:
            return self._send(request, deadline)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Wait for a running export on another thread, and return whether it ended in time. No points are buffered."""
        if not self._lock.acquire(timeout=min(max(timeout_millis / 1000, 0.0), threading.TIMEOUT_MAX)):
            return False
        self._lock.release()
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        self._stopped.set()
        self._exporter.abort()
        with self._lock:
            self._exporter.shutdown()

    def _send(self, request: Request, deadline: float) -> MetricExportResult:
        delays = exponential_delays(0.5, _LONGEST_DELAY)
        while True:
            outcome = self._exporter.export(request, max(deadline - time.monotonic(), _SHORTEST_ATTEMPT))
            match outcome:
                case Accepted(rejected, message):
                    if rejected:
                        logger.error("the server refused %d of %d points: %s", rejected, request.items, message)
                    return MetricExportResult.SUCCESS
                case Retry(reason, after):
                    delay = retry_delay(next(delays), after)
                    if time.monotonic() + delay < deadline and not self._stopped.wait(delay):
                        continue
                case _:
                    reason = outcome.reason
            logger.error("lost %d points: %s", request.items, reason)
            return MetricExportResult.FAILURE
