"""The `otel:NAME` destinations: any OpenTelemetry metric exporter, by the name that `OTEL_METRICS_EXPORTER` uses.

The OpenTelemetry exporter is constructed without arguments and configured by its own environment variables. It receives
every point, with steps as the gauge `tensormeter.step`, but no events, because events are not metrics. Deduplication is
left to its receiver. OpenTelemetry exporters do not report why they failed, so every failure is retried.
"""

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Final, cast

import numpy as np
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Buckets,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from tensormeter.errors import SettingsError, join_choices
from tensormeter.exporter import Accepted, ExporterConfig, Outcome, Request, Retry
from tensormeter.logger import get_logger
from tensormeter.otlp import batch as columns
from tensormeter.otlp.decode import decode_metrics
from tensormeter_exporters.base import DecodingExporter
from tensormeter_exporters.request_bodies import decoding, decompress

__all__ = ["OTelExporter", "metrics_data"]

logger: Final = get_logger("tensormeter.agent")

_GROUP: Final = "opentelemetry_metrics_exporter"

_TAKES_NO_SUM: Final = ("opentelemetry.exporter.otlp.", "opentelemetry.sdk.", "tensormeter_exporters.")
"""Prefixes of modules whose exporters omit a sum of None. Other exporters may calculate with sums and receive NaN."""


class OTelExporter(DecodingExporter):
    """The exporter of an `otel:NAME` destination. It implements `tensormeter.exporter.Exporter` and has no options."""

    def __init__(self, config: ExporterConfig) -> None:
        config.options_or()
        entries = entry_points(group=_GROUP, name=config.label)
        if not entries:
            known = sorted(entry_points(group=_GROUP).names)
            raise SettingsError(
                f"exporters: expected otel:NAME, where NAME is {join_choices(*known)}; got {config.destination!r}"
            )
        (entry,) = entries
        try:
            exporter = entry.load()()
        except Exception as error:
            raise SettingsError(
                f"{config.destination}: cannot create {entry.value} ({type(error).__name__}: {error}); check the "
                "environment variables that it reads"
            ) from None
        if not isinstance(exporter, MetricExporter):
            raise SettingsError(f"{config.destination}: {entry.value} is not a metric exporter")
        self._exporter = exporter
        self._no_sum = None if type(exporter).__module__.startswith(_TAKES_NO_SUM) else math.nan
        self._destination = config.destination
        self._timeout = config.timeout
        self._logs_reported = False

    def deliver(self, request: Request) -> Outcome:
        if request.signal == "logs":
            if not self._logs_reported:
                self._logs_reported = True
                logger.info(
                    "%s accepts only metrics; configuration, run states and media are not sent to it", self._destination
                )
            return Accepted()
        body = decompress(request)
        with decoding(request):
            data, left_out = metrics_data(decode_metrics(body), no_sum=self._no_sum)
        result = self._exporter.export(data, timeout_millis=self._timeout * 1000)
        if result is not MetricExportResult.SUCCESS:
            return Retry(f"{type(self._exporter).__name__} failed; see its log messages")
        return Accepted(left_out, "the SDK does not support summaries" if left_out else "")

    def shutdown(self) -> None:
        self._exporter.shutdown(timeout_millis=self._timeout * 1000)


def metrics_data(batches: Sequence[columns.Batch], *, no_sum: float | None = None) -> tuple[MetricsData, int]:
    """Convert batches of columns to SDK objects.

    Args:
        batches: Batches to convert.
        no_sum: Value to use for a missing sum. OTLP omits a histogram's sum if there are negative values, because
            receivers treat sums as counters.

    Returns:
        SDK objects, and the number of summary points, which the SDK does not support.
    """
    left_out = 0
    # Keyed by content, because the SDK's OTLP encoder keeps only the last of several equal resources or scopes.
    resources: dict[str, tuple[columns.Batch, dict[str, tuple[columns.Scope, list[Metric]]]]] = {}
    for batch in batches:
        _, scopes = resources.setdefault(repr(sorted(batch.resource.items())), (batch, {}))
        for series in batch.series:
            data = _data(series, no_sum)
            if data is None:
                left_out += len(series.times)
                continue
            scope = series.scope
            key = repr((scope.name, scope.version, scope.schema_url, sorted(scope.attributes.items())))
            _, metrics = scopes.setdefault(key, (scope, []))
            metrics.append(Metric(series.name, series.description, series.unit, data))
    resource_metrics = [
        ResourceMetrics(
            Resource(_sdk(batch.resource)),
            [ScopeMetrics(_scope(scope), metrics, scope.schema_url) for scope, metrics in scopes.values()],
            "",
        )
        for batch, scopes in resources.values()
    ]
    return MetricsData(resource_metrics), left_out


def _data(series: columns.Series, no_sum: float | None) -> Gauge | Sum | Histogram | ExponentialHistogram | None:
    attributes = _sdk(series.attributes)
    times = series.times.tolist()
    if isinstance(series, columns.Gauge):
        pairs = zip(times, series.values.tolist(), strict=True)
        return Gauge([NumberDataPoint(attributes, 0, at, value) for at, value in pairs])
    if isinstance(series, columns.Sum):
        rows = zip(series.start_times.tolist(), times, series.values.tolist(), strict=True)
        points = [NumberDataPoint(attributes, start, at, value) for start, at, value in rows]
        return Sum(points, AggregationTemporality(series.temporality), series.monotonic)
    if isinstance(series, columns.Histogram):
        bounds = series.bounds.tolist()
        return Histogram(
            [
                HistogramDataPoint(
                    attributes, **_statistics(series, at, no_sum), bucket_counts=counts, explicit_bounds=bounds
                )
                for at, counts in enumerate(series.buckets.tolist())
            ],
            AggregationTemporality(series.temporality),
        )
    if isinstance(series, columns.ExponentialHistogram):
        return ExponentialHistogram(
            [
                ExponentialHistogramDataPoint(
                    attributes,
                    **_statistics(series, at, no_sum),
                    scale=int(series.scales[at]),
                    zero_count=int(series.zero_counts[at]),
                    positive=_buckets(series.positive, at),
                    negative=_buckets(series.negative, at),
                    flags=0,
                )
                for at in range(len(times))
            ],
            AggregationTemporality(series.temporality),
        )
    return None


def _statistics(series: columns.Distribution, at: int, no_sum: float | None) -> dict[str, Any]:
    """Return the fields that both kinds of histograms have, with the SDK's values for a missing minimum or maximum."""
    low, high, total = float(series.minima[at]), float(series.maxima[at]), float(series.sums[at])
    return {
        "start_time_unix_nano": int(series.start_times[at]),
        "time_unix_nano": int(series.times[at]),
        "count": int(series.counts[at]),
        "sum": no_sum if np.isnan(total) or low < 0 else total,
        "min": np.inf if np.isnan(low) else low,
        "max": -np.inf if np.isnan(high) else high,
    }


def _buckets(side: columns.Buckets, at: int) -> Buckets:
    return Buckets(int(side.offsets[at]), side.counts[at].tolist())


def _scope(scope: columns.Scope) -> InstrumentationScope:
    return InstrumentationScope(scope.name, scope.version, scope.schema_url, _sdk(scope.attributes))


def _sdk(attributes: Mapping[str, columns.Attribute]) -> Any:
    return cast("Any", dict(attributes))
