"""OTLP protobuf to columns.

Blocks on nothing and keeps no state; safe on any thread.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, NumberDataPoint

from tensormeter.errors import EncodingError
from tensormeter.otlp.batch import Attribute, Batch, Event, Gauge, Value

__all__ = ["DecodedMetrics", "decode_events", "decode_metrics"]


@dataclass(frozen=True)
class DecodedMetrics:
    """A decoded metrics request.

    Attributes:
        batches: The gauges, one batch a resource.
        unsupported: Data points of other kinds by kind (`sum`, `histogram`, ...). They are reported, never dropped
            silently.
    """

    batches: list[Batch]
    unsupported: dict[str, int] = field(default_factory=dict)


def decode_metrics(body: bytes) -> DecodedMetrics:
    """Decode an `ExportMetricsServiceRequest`.

    Raises:
        EncodingError: The bytes are not such a message.
    """
    request = ExportMetricsServiceRequest()
    _parse(request, body)
    decoded = DecodedMetrics([])
    for resource_metrics in request.resource_metrics:
        gauges: list[Gauge] = []
        for scope_metrics in resource_metrics.scope_metrics:
            for metric in scope_metrics.metrics:
                kind = metric.WhichOneof("data")
                if kind == "gauge":
                    gauges.extend(_gauges(metric))
                elif kind is not None:
                    points = len(getattr(metric, kind).data_points)
                    decoded.unsupported[kind] = decoded.unsupported.get(kind, 0) + points
        decoded.batches.append(Batch(attributes(resource_metrics.resource.attributes), gauges))
    return decoded


def decode_events(body: bytes) -> list[tuple[dict[str, Attribute], list[Event]]]:
    """Decode an `ExportLogsServiceRequest` into (resource, events) pairs.

    Raises:
        EncodingError: The bytes are not such a message.
    """
    request = ExportLogsServiceRequest()
    _parse(request, body)
    return [
        (
            attributes(resource_logs.resource.attributes),
            [
                Event(
                    name=record.event_name,
                    time=record.time_unix_nano or record.observed_time_unix_nano,
                    body=_value(record.body),
                    attributes=attributes(record.attributes),
                )
                for scope_logs in resource_logs.scope_logs
                for record in scope_logs.log_records
            ],
        )
        for resource_logs in request.resource_logs
    ]


def attributes(pairs: Iterable[KeyValue]) -> dict[str, Attribute]:
    """Attributes as a dictionary; the first of equal keys wins."""
    found: dict[str, Attribute] = {}
    for pair in pairs:
        found.setdefault(pair.key, cast("Attribute", _value(pair.value)))
    return found


def _parse(request: ExportMetricsServiceRequest | ExportLogsServiceRequest, body: bytes) -> None:
    try:
        request.ParseFromString(body)
    except DecodeError as error:
        raise EncodingError(f"not a protobuf {type(request).__name__}: {error}") from None


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


def _gauges(metric: Metric) -> list[Gauge]:
    """Points grouped by attribute set and by kind of number, in order of arrival."""
    groups: dict[tuple[bytes, str], tuple[NumberDataPoint, list[int], list[int | float]]] = {}
    for point in metric.gauge.data_points:
        kind = point.WhichOneof("value")
        if kind is None:  # "no recorded value"
            continue
        key = b"".join(sorted(pair.SerializeToString() for pair in point.attributes)) if point.attributes else b""
        group = groups.get((key, kind))
        if group is None:
            group = groups[key, kind] = (point, [], [])
        group[1].append(point.time_unix_nano)
        group[2].append(getattr(point, kind))
    return [
        Gauge(
            name=metric.name,
            times=np.array(times, np.uint64),
            values=np.array(values, np.int64) if kind == "as_int" else np.array(values, np.float64),
            unit=metric.unit,
            description=metric.description,
            attributes=attributes(first.attributes),
        )
        for (_, kind), (first, times, values) in groups.items()
    ]
