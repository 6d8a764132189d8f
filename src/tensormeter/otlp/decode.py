"""Decoding of OTLP protobuf messages to columns.

The functions are thread-safe, do not block and keep no state.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypedDict, TypeVar, cast

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    DataPointFlags,
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    SummaryDataPoint,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import Sum as ProtoSum

from tensormeter.errors import EncodingError
from tensormeter.otlp.batch import (
    Attribute,
    Batch,
    Buckets,
    Event,
    ExponentialHistogram,
    Gauge,
    Histogram,
    Scope,
    Series,
    Sum,
    Summary,
    Temporality,
    Value,
)
from tensormeter.otlp.check import Check, no_check
from tensormeter.otlp.fixed_layout import Field, FixedPoints, iterate_fields, read_fixed_points
from tensormeter.otlp.interleaved_series import read_mixed_points

__all__ = ["FixedData", "attributes", "decode_events", "decode_metrics", "find_fixed_points", "parse", "scope_of"]

# Field numbers, and tags: number << 3 | wire type (0: varint, 2: length-delimited).
_LEN = 2
_RESOURCE_METRICS = 1
_SCOPE_METRICS = 2
_METRICS = 2
_GAUGE = 5
_SUM = 7
_DATA = (5, 7, 9, 10, 11)
_POINT_TAG = 1 << 3 | 2
_FEW = 100
"""Minimum size in bytes of a metric that NumPy reads. protobuf reads smaller metrics just as quickly."""
_MIN_MIXED_BYTES = 2000
"""Total size of a metric's points in bytes above which grouping the points by series is worthwhile."""
_MANY_FIELDS = 1000
"""Maximum number of fields in a metric that NumPy reads. A longer list of fields would take more memory than the metric."""
_SUM_TEMPORALITY = 2 << 3
_SUM_MONOTONIC = 3 << 3
_NO_RECORDED_VALUE = DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK

_Item = TypeVar("_Item")
_Shell = TypeVar("_Shell", ExportMetricsServiceRequest, ResourceMetrics, ScopeMetrics)


def decode_metrics(body: bytes, check: Check = no_check) -> list[Batch]:
    """Decode an `ExportMetricsServiceRequest` to one batch per resource. All five kinds of metrics are supported.

    Number points with the flag "no recorded value" are added to the batch's gaps. Distributions with this flag, number points
    without a value, and exemplars are ignored. NumPy reads gauges and sums whose points all have the same layout. protobuf
    reads all other metrics.

    Args:
        body: Encoded message.
        check: Function that is called for each resource and each metric. It can raise an error to stop decoding.

    Raises:
        EncodingError: The bytes are not an `ExportMetricsServiceRequest`, or a resource or scope contains a group. OTLP does
            not use groups.
    """
    view = memoryview(body)
    whole = Field(0, _LEN, 0, 0, len(view))
    _, resources = _split(view, whole, ExportMetricsServiceRequest(), _RESOURCE_METRICS)
    return [_resource_metrics(view, field, check) for field in resources]


def _resource_metrics(body: memoryview, message: Field, check: Check) -> Batch:
    check()
    shell, scopes = _split(body, message, ResourceMetrics(), _SCOPE_METRICS)
    gaps: list[Gauge | Sum] = []
    series = [series for scope_metrics in scopes for series in _scope_metrics(body, scope_metrics, gaps, check)]
    return Batch(attributes(shell.resource.attributes), series, gaps)


def _scope_metrics(body: memoryview, message: Field, gaps: list[Gauge | Sum], check: Check) -> Iterator[Series]:
    """Yield the series of a scope, and append its gaps to `gaps`."""
    shell, metrics = _split(body, message, ScopeMetrics(), _METRICS)
    scope = scope_of(shell)
    for field in metrics:
        check()
        fixed = _fixed_series(body, field, scope)
        if fixed:  # points with a fixed layout have no flags, so there are no gaps
            yield from fixed
        else:
            metric = _metric(body, field)
            yield from _series(metric, scope)
            gaps += _gaps(metric, scope)


def _split(body: memoryview, message: Field, shell: _Shell, number: int) -> tuple[_Shell, list[Field]]:
    """Parse a message, except for the fields with the given number. Return the parsed message and the list of those fields."""
    fields = _fields(body, message)
    parts = [field for field in fields if _is(field, number)]
    parse(shell, b"".join(body[field.begin : field.end] for field in fields if not _is(field, number)))
    return shell, parts


def _fields(body: memoryview, message: Field) -> list[Field]:
    fields = iterate_fields(body, message.content, message.end)
    if fields is None:
        raise EncodingError("not a protobuf ExportMetricsServiceRequest: it contains a malformed field or a group")
    return fields


def _is(field: Field, number: int) -> bool:
    return field.number == number and field.wire == _LEN


def _metric(body: memoryview, field: Field) -> Metric:
    metric = Metric()
    parse(metric, bytes(body[field.content : field.end]))
    return metric


def _fixed_series(body: memoryview, message: Field, scope: Scope) -> list[Series]:
    """Return the series of a gauge or a sum whose points all have the same layout. Return an empty list for other metrics."""
    fixed = find_fixed_points(body, message)
    if fixed is None:
        return []
    inner = fixed.data
    fields = _fields(body, message)
    rest = bytes(body[fixed.end : inner.end])
    shell = Metric()
    parse(shell, b"".join(body[field.begin : field.end] for field in fields if field.begin != inner.begin))
    metadata: _Metadata = {"unit": shell.unit, "description": shell.description, "scope": scope}
    total = ProtoSum()
    parse(total, rest)
    if total.data_points:
        return []
    return [series for _, points in fixed.groups for series in _series_of(points, shell.name, inner, total, metadata)]


def _series_of(points: FixedPoints, name: str, data: Field, total: ProtoSum, metadata: "_Metadata") -> list[Series]:
    """Convert points with the same layout to one series of floats and one series of integers. Omit empty series."""
    template = NumberDataPoint()
    parse(template, points.first)
    shared_attributes = attributes(template.attributes)
    series: list[Series] = []
    for integers in (False, True):
        selected = points.integers == integers
        if selected.all():
            times, start_times, words = points.times, points.start_times, points.words
        elif selected.any():
            times, start_times, words = points.times[selected], points.start_times[selected], points.words[selected]
        else:
            continue
        values = words if integers else words.view(np.float64)
        if data.number == _GAUGE:
            series.append(Gauge(name, times, values, attributes=shared_attributes, **metadata))
        else:
            series.append(
                Sum(
                    name,
                    times,
                    values,
                    start_times,
                    monotonic=total.is_monotonic,
                    temporality=_temporality(total.aggregation_temporality),
                    attributes=shared_attributes,
                    **metadata,
                )
            )
    return series


@dataclass(frozen=True, eq=False)
class FixedData:
    """The points of a metric, grouped by series. All points of a series have the same layout.

    Attributes:
        data: Field that contains the gauge or sum.
        end: Offset of the end of the points in this field.
        groups: One pair for each series: the offset of the series' first point, and all points of the series.
    """

    data: Field
    end: int
    groups: Sequence[tuple[int, FixedPoints]]


def find_fixed_points(body: memoryview, message: Field) -> FixedData | None:
    """Return a metric's points if `decode_metrics` reads them as columns, or None if protobuf must read them one at a time."""
    if message.end - message.content < _FEW:
        return None
    fields = iterate_fields(body, message.content, message.end, _MANY_FIELDS)
    data = [field for field in fields or () if field.number in _DATA]
    if len(data) != 1 or data[0].number not in (_GAUGE, _SUM) or data[0].wire != _LEN:
        return None
    inner = data[0]
    if inner.content >= inner.end:
        return None
    # The points come first, followed by the fields that apply to all points.
    end = _end_of_points(body, inner) if inner.number == _SUM else inner.end
    points = read_fixed_points(body, inner.content, end, _POINT_TAG)
    if points is not None:
        return FixedData(inner, end, [(inner.content, points)])
    groups = read_mixed_points(body, inner.content, end, _POINT_TAG) if end - inner.content > _MIN_MIXED_BYTES else None
    return None if groups is None else FixedData(inner, end, groups)


def _end_of_points(body: memoryview, data: Field) -> int:
    """Return the offset of the end of a sum's points.

    The temporality and monotonicity fields follow the points. Each takes two bytes, or is absent if its value is zero.
    """
    end = data.end
    for _ in range(2):
        if end - 2 >= data.content and body[end - 2] in (_SUM_TEMPORALITY, _SUM_MONOTONIC) and body[end - 1] < 0x80:
            end -= 2
    return end


def decode_events(body: bytes, check: Check = no_check) -> list[tuple[dict[str, Attribute], list[Event]]]:
    """Decode an `ExportLogsServiceRequest` to (resource, events) pairs.

    Args:
        body: Encoded message.
        check: Function that is called for each resource and each record. It can raise an error to stop decoding.

    Raises:
        EncodingError: The bytes are not an `ExportLogsServiceRequest`.
    """
    request = ExportLogsServiceRequest()
    parse(request, body)
    return [
        (
            attributes(resource_logs.resource.attributes),
            [
                _event(record, scope)
                for scope_logs in resource_logs.scope_logs
                for scope in [scope_of(scope_logs)]
                for record in _checked(scope_logs.log_records, check)
            ],
        )
        for resource_logs in _checked(request.resource_logs, check)
    ]


def _checked(items: Iterable[_Item], check: Check) -> Iterator[_Item]:
    """Yield the items, calling `check` before each item."""
    for item in items:
        check()
        yield item


def attributes(pairs: Iterable[KeyValue]) -> dict[str, Attribute]:
    """Convert attributes to a dictionary. If a key occurs several times, use its first value."""
    mapping: dict[str, Attribute] = {}
    for pair in pairs:
        mapping.setdefault(pair.key, cast("Attribute", _value(pair.value)))
    return mapping


def parse(message: Message, body: bytes) -> None:
    """Parse `body` into `message`. Raises EncodingError."""
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise EncodingError(f"not a protobuf {type(message).__name__}: {error}") from None


def _value(value: AnyValue) -> Value:
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [_value(item) for item in value.array_value.values]
        case "kvlist_value":
            return {pair.key: _value(pair.value) for pair in value.kvlist_value.values}
        case kind:
            return cast("Value", getattr(value, kind))


def scope_of(shell: ScopeMetrics | ScopeLogs) -> Scope:
    """Return a message's instrumentation scope."""
    return Scope(shell.scope.name, shell.scope.version, shell.schema_url, attributes(shell.scope.attributes))


def _event(record: LogRecord, scope: Scope) -> Event:
    return Event(
        record.event_name,
        record.time_unix_nano or record.observed_time_unix_nano,
        _value(record.body),
        attributes(record.attributes),
        severity_number=record.severity_number,
        severity_text=record.severity_text,
        trace_id=record.trace_id.hex(),
        span_id=record.span_id.hex(),
        flags=record.flags,
        observed_time=record.observed_time_unix_nano,
        scope=scope,
    )


def _series(metric: Metric, scope: Scope) -> Iterator[Series]:
    metadata: _Metadata = {
        "unit": metric.unit,
        "description": metric.description,
        "scope": scope,
    }
    match metric.WhichOneof("data"):
        case "gauge":
            for points, numbers, attributes_ in _number_columns(metric.gauge.data_points):
                yield Gauge(metric.name, _times(points), numbers, attributes=attributes_, **metadata)
        case "sum":
            for points, numbers, attributes_ in _number_columns(metric.sum.data_points):
                yield _sum(metric, points, numbers, attributes_, metadata)
        case "histogram":
            yield from _histograms(metric, metadata)
        case "exponential_histogram":
            yield from _exponential_histograms(metric, metadata)
        case "summary":
            yield from _summaries(metric, metadata)
        case _:
            return


def _sum(
    metric: Metric,
    points: Sequence[NumberDataPoint],
    values: NDArray[np.float64] | NDArray[np.int64],
    attributes: Mapping[str, Attribute],
    metadata: "_Metadata",
) -> Sum:
    return Sum(
        metric.name,
        _times(points),
        values,
        _start_times(points),
        monotonic=metric.sum.is_monotonic,
        temporality=_temporality(metric.sum.aggregation_temporality),
        attributes=attributes,
        **metadata,
    )


def _gaps(metric: Metric, scope: Scope) -> Iterator[Gauge | Sum]:
    """Yield the points of a gauge or sum that have the flag "no recorded value", grouped by series. Their values are NaN."""
    kind = metric.WhichOneof("data")
    if kind not in ("gauge", "sum"):
        return
    metadata: _Metadata = {"unit": metric.unit, "description": metric.description, "scope": scope}
    points = metric.gauge.data_points if kind == "gauge" else metric.sum.data_points
    flagged = [point for point in points if point.flags & _NO_RECORDED_VALUE]
    for group in _groups(flagged):
        shared_attributes, values = attributes(group[0].attributes), np.full(len(group), np.nan)
        if kind == "gauge":
            yield Gauge(metric.name, _times(group), values, attributes=shared_attributes, **metadata)
        else:
            yield _sum(metric, group, values, shared_attributes, metadata)


def _histograms(metric: Metric, metadata: "_Metadata") -> Iterator[Series]:
    def shape(point: HistogramDataPoint) -> Hashable:
        return tuple(point.explicit_bounds), len(point.bucket_counts)

    for points in _by_attributes(metric.histogram.data_points, shape):
        yield Histogram(
            metric.name,
            _times(points),
            _start_times(points),
            *_distribution(points),
            bounds=np.array(points[0].explicit_bounds, np.float64),
            buckets=np.array([point.bucket_counts for point in points], np.uint64),
            temporality=_temporality(metric.histogram.aggregation_temporality),
            attributes=attributes(points[0].attributes),
            **metadata,
        )


def _exponential_histograms(metric: Metric, metadata: "_Metadata") -> Iterator[Series]:
    for points in _by_attributes(metric.exponential_histogram.data_points):
        yield ExponentialHistogram(
            metric.name,
            _times(points),
            _start_times(points),
            *_distribution(points),
            scales=np.array([point.scale for point in points], np.int64),
            zero_counts=np.array([point.zero_count for point in points], np.uint64),
            zero_thresholds=np.array([point.zero_threshold for point in points], np.float64),
            positive=_buckets([point.positive for point in points]),
            negative=_buckets([point.negative for point in points]),
            temporality=_temporality(metric.exponential_histogram.aggregation_temporality),
            attributes=attributes(points[0].attributes),
            **metadata,
        )


def _summaries(metric: Metric, metadata: "_Metadata") -> Iterator[Series]:
    def shape(point: SummaryDataPoint) -> Hashable:
        return tuple(value.quantile for value in point.quantile_values)

    for points in _by_attributes(metric.summary.data_points, shape):
        yield Summary(
            metric.name,
            _times(points),
            _start_times(points),
            counts=np.array([point.count for point in points], np.uint64),
            sums=np.array([point.sum for point in points], np.float64),
            quantiles=np.array([value.quantile for value in points[0].quantile_values], np.float64),
            values=np.array([[value.value for value in point.quantile_values] for point in points], np.float64),
            attributes=attributes(points[0].attributes),
            **metadata,
        )


class _Metadata(TypedDict):
    unit: str
    description: str
    scope: Scope


class _Point(Protocol):
    time_unix_nano: int
    start_time_unix_nano: int
    flags: int

    @property
    def attributes(self) -> Iterable[KeyValue]: ...


_AnyPoint = TypeVar("_AnyPoint", bound=_Point)


def _by_attributes(
    points: Iterable[_AnyPoint], shape: Callable[[_AnyPoint], Hashable] = lambda point: None
) -> Iterable[list[_AnyPoint]]:
    """Group points by attribute set and `shape`, in order of arrival. Skip points with the flag "no recorded value"."""
    return _groups((point for point in points if not point.flags & _NO_RECORDED_VALUE), shape)


def _groups(
    points: Iterable[_AnyPoint], shape: Callable[[_AnyPoint], Hashable] = lambda point: None
) -> Iterable[list[_AnyPoint]]:
    groups: dict[Hashable, list[_AnyPoint]] = {}
    for point in points:
        key = b"".join(sorted(pair.SerializeToString() for pair in point.attributes)) if point.attributes else b""
        groups.setdefault((key, shape(point)), []).append(point)
    return groups.values()


def _number_columns(
    points: Iterable[NumberDataPoint],
) -> Iterator[tuple[list[NumberDataPoint], NDArray[np.float64] | NDArray[np.int64], dict[str, Attribute]]]:
    """Group number points by attribute set and value type. Yield the points, values and attributes of each group."""

    def kind(point: NumberDataPoint) -> str | None:
        return point.WhichOneof("value")

    for group in _by_attributes(points, kind):
        shared_attributes = attributes(group[0].attributes)
        match kind(group[0]):
            case "as_int":
                yield group, np.array([point.as_int for point in group], np.int64), shared_attributes
            case "as_double":
                yield group, np.array([point.as_double for point in group], np.float64), shared_attributes
            case _:
                continue  # the points have neither a value nor the flag


def _times(points: Sequence[_Point]) -> NDArray[np.uint64]:
    return np.array([point.time_unix_nano for point in points], np.uint64)


def _start_times(points: Sequence[_Point]) -> NDArray[np.uint64]:
    return np.array([point.start_time_unix_nano for point in points], np.uint64)


def _distribution(
    points: Sequence[HistogramDataPoint] | Sequence[ExponentialHistogramDataPoint],
) -> tuple[NDArray[np.uint64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the counts, sums, minima and maxima of histogram points."""

    def optional(name: Literal["sum", "min", "max"]) -> NDArray[np.float64]:
        return np.array([getattr(point, name) if point.HasField(name) else np.nan for point in points], np.float64)

    counts = np.array([point.count for point in points], np.uint64)
    return counts, optional("sum"), optional("min"), optional("max")


def _buckets(sides: Sequence[ExponentialHistogramDataPoint.Buckets]) -> Buckets:
    return Buckets(
        np.array([side.offset for side in sides], np.int64),
        [np.array(side.bucket_counts, np.uint64) for side in sides],
    )


def _temporality(number: int) -> Temporality:
    return Temporality(number) if number in tuple(Temporality) else Temporality.UNSPECIFIED
