"""Selection of the points of OTLP metrics messages with any kind of point.

Items of repeated fields are removed together with the metrics, scopes and resources that they leave empty.
"""

from collections.abc import Callable
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

__all__ = ["all_points", "data_of", "drop_items", "keep_metrics", "keep_points", "parse_metrics", "replace_items"]


def parse_metrics(body: bytes) -> Any:
    """Return a metrics message without empty metrics.

    Raises:
        DecodeError: The body cannot be decoded.
    """
    message = ExportMetricsServiceRequest.FromString(body)
    for resource in message.resource_metrics:
        for scope in resource.scope_metrics:
            drop_items(scope.metrics, lambda metric: metric.WhichOneof("data") is not None)
    return message


def keep_metrics(message: Any, wanted: Callable[[Any], bool]) -> None:
    """Remove a request's unwanted and empty metrics, and then scopes and resources without metrics."""
    for resource in message.resource_metrics:
        for scope in resource.scope_metrics:
            drop_items(scope.metrics, lambda metric: metric.WhichOneof("data") is not None and wanted(metric))
        drop_items(resource.scope_metrics, lambda scope: bool(scope.metrics))
    drop_items(message.resource_metrics, lambda resource: bool(resource.scope_metrics))


def keep_points(message: Any, wanted: Callable[[int, Any], bool]) -> int:
    """Remove unwanted points, and metrics, scopes and resources without points. Return the number of remaining points.

    `wanted` receives a point's number and the point.
    """
    number = kept_points = 0
    for resource in message.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                points = data_of(metric).data_points
                kept = []
                for point in points:
                    if wanted(number, point):
                        kept.append(point)
                    number += 1
                kept_points += len(kept)
                replace_items(points, kept)
            drop_items(scope.metrics, lambda metric: bool(data_of(metric).data_points))
        drop_items(resource.scope_metrics, lambda scope: bool(scope.metrics))
    drop_items(message.resource_metrics, lambda resource: bool(resource.scope_metrics))
    return kept_points


def all_points(message: Any) -> list[Any]:
    """Return the points of all metrics."""
    return [
        point
        for resource in message.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in data_of(metric).data_points
    ]


def data_of(metric: Any) -> Any:
    """Return the gauge, sum, histogram or summary of a metric."""
    return getattr(metric, metric.WhichOneof("data"))


def drop_items(repeated: Any, wanted: Callable[[Any], bool]) -> None:
    """Remove the unwanted items of a repeated field."""
    if not all(wanted(item) for item in repeated):
        replace_items(repeated, [item for item in repeated if wanted(item)])


def replace_items(repeated: Any, items: list[Any]) -> None:
    """Replace the items of a repeated field. They are copied first, because clearing the field deletes its items."""
    copies = []
    for item in items:
        copy = type(item)()
        copy.CopyFrom(item)
        copies.append(copy)
    del repeated[:]
    repeated.extend(copies)
