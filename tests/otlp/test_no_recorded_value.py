"""Points flagged as having no recorded value (Collectors send them when a series ends) are no points."""

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as otlp

from tensormeter.otlp.decode import decode_metrics

NO_RECORDED_VALUE = 1
T0 = 1_750_000_000_000_000_000


def number(**fields):
    return otlp.NumberDataPoint(time_unix_nano=T0, **fields)


KINDS = {
    "gauge": (otlp.Gauge, lambda **fields: number(as_double=2.0, **fields)),
    "integer gauge": (otlp.Gauge, lambda **fields: number(as_int=2, **fields)),
    "gauge without a value": (otlp.Gauge, number),
    "sum": (otlp.Sum, lambda **fields: number(as_double=2.0, **fields)),
    "histogram": (
        otlp.Histogram,
        lambda **fields: otlp.HistogramDataPoint(time_unix_nano=T0, count=1, bucket_counts=[1], **fields),
    ),
    "exponential_histogram": (
        otlp.ExponentialHistogram,
        lambda **fields: otlp.ExponentialHistogramDataPoint(time_unix_nano=T0, count=1, zero_count=1, **fields),
    ),
    "summary": (otlp.Summary, lambda **fields: otlp.SummaryDataPoint(time_unix_nano=T0, count=1, **fields)),
}


def decoded(kind, data):
    """Points of each attribute set."""
    metric = otlp.Metric(name="m", **{kind.split()[-1] if kind == "integer gauge" else kind.split()[0]: data})
    scoped = otlp.ScopeMetrics(metrics=[metric])
    request = ExportMetricsServiceRequest(resource_metrics=[otlp.ResourceMetrics(scope_metrics=[scoped])])
    (batch,) = decode_metrics(request.SerializeToString())
    return {series.attributes["a"]: len(series.times) for series in batch.series}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flags", [NO_RECORDED_VALUE, NO_RECORDED_VALUE | 1 << 8])
@pytest.mark.parametrize("n", [1, 60])
def test_flagged_points_of_every_kind_are_left_out(kind, flags, n):
    """Also where many alike would be read at once."""
    data, point = KINDS[kind]
    kept = [point(attributes=[KeyValue(key="a", value=AnyValue(string_value="kept"))], flags=1 << 8) for _ in range(n)]
    gone = [point(attributes=[KeyValue(key="a", value=AnyValue(string_value="gone"))], flags=flags) for _ in range(n)]
    expected = {} if kind == "gauge without a value" else {"kept": n}
    assert decoded(kind, data(data_points=[*kept, *gone])) == expected
    assert decoded(kind, data(data_points=gone)) == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 60])
def test_flagged_numbers_are_gaps_of_their_series(kind, n):
    data, point = KINDS[kind]
    gone = [point(attributes=[KeyValue(key="a", value=AnyValue(string_value="gone"))], flags=1) for _ in range(n)]
    kept = [point(attributes=[KeyValue(key="a", value=AnyValue(string_value="kept"))]) for _ in range(n)]
    metric = otlp.Metric(
        name="m", **{kind.split()[-1] if kind == "integer gauge" else kind.split()[0]: data(data_points=kept + gone)}
    )
    scoped = otlp.ScopeMetrics(metrics=[metric])
    request = ExportMetricsServiceRequest(resource_metrics=[otlp.ResourceMetrics(scope_metrics=[scoped])])
    (batch,) = decode_metrics(request.SerializeToString())
    gaps = [(series.name, series.attributes, len(series.times)) for series in batch.gaps]
    numbers = "gauge" in kind or kind == "sum"
    assert gaps == ([("m", {"a": "gone"}, n)] if numbers else [])
