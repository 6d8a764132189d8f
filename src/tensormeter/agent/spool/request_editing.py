"""Editing of encoded requests that are too large or do not fit into a full spool.

`halves` splits an oversized request in two. `thinned` and `condensed` reduce requests that do not fit into a full
spool. All three accept OTLP messages with any kind of point, and return the same bytes for the same input.

The points of a row have the same time, and stay together.
"""

import gzip
from collections.abc import Callable, Sequence
from typing import Any, Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

from tensormeter.exporter import Request

__all__ = ["condensed", "halves", "keep_metrics", "keep_points", "pack", "thinned"]

_GZIP_LEVEL: Final = 1
_DELTA: Final = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA


def halves(request: Request) -> tuple[Request, Request] | None:
    """Return the two halves of a request, whose IDs are derived from its ID; return None for a single item.

    A request with several rows is divided between two rows, and a single row between two points.

    Raises:
        DecodeError, OSError: The body cannot be decompressed or decoded.
    """
    body = gzip.decompress(request.body)
    split = _halve_logs(body) if request.signal == "logs" else _halve_metrics(body)
    if split is None:
        return None
    first, second = (
        Request(f"{request.id}.{number}", request.signal, pack(message), items)
        for number, (message, items) in enumerate(split)
    )
    return first, second


def thinned(body: bytes) -> tuple[bytes, int, int]:
    """Return a metrics request with every second row and the last point of each series.

    All points of delta sums and delta histograms are kept, because each is part of a total.

    Returns:
        The smaller body, the number of points in it, and the number of points removed.
    """
    message = _parse_metrics(gzip.decompress(body))
    times = sorted({point.time_unix_nano for _, points in _series(message) for point in points})
    kept_times = frozenset(times[1::2])
    return _keep_last_and(message, lambda point: point.time_unix_nano in kept_times)


def condensed(bodies: Sequence[bytes]) -> tuple[bytes, int, int]:
    """Join metrics requests, keeping only the last point of each series and the points that `thinned` always keeps.

    Returns:
        The same values as `thinned`.
    """
    # Concatenated protobuf messages are one message, whose repeated fields contain the items of both.
    message = _parse_metrics(b"".join(map(gzip.decompress, bodies)))
    _join_resources(message)
    return _keep_last_and(message, lambda point: False)


def pack(message: Any) -> bytes:
    """Return a message as a request body. Equal messages give equal bytes."""
    return gzip.compress(message.SerializeToString(), _GZIP_LEVEL, mtime=0)


def keep_metrics(message: Any, wanted: Callable[[Any], bool]) -> None:
    """Remove a request's unwanted and empty metrics, and then scopes and resources without metrics."""
    for resource in message.resource_metrics:
        for scope in resource.scope_metrics:
            _drop_empty(scope.metrics, lambda metric: metric.WhichOneof("data") is not None and wanted(metric))
        _drop_empty(resource.scope_metrics, lambda scope: bool(scope.metrics))
    _drop_empty(message.resource_metrics, lambda resource: bool(resource.scope_metrics))


def keep_points(message: Any, wanted: Callable[[Any], bool]) -> None:
    """Remove a request's unwanted points, and then metrics, scopes and resources without points."""
    _keep(message, lambda _number, point, _delta: wanted(point))


def _halve_logs(body: bytes) -> list[tuple[Any, int]] | None:
    first, second = ExportLogsServiceRequest.FromString(body), ExportLogsServiceRequest.FromString(body)
    total = sum(len(scope.log_records) for resource in first.resource_logs for scope in resource.scope_logs)
    if total < 2:
        return None
    for message, wanted in ((first, range(total // 2)), (second, range(total // 2, total))):
        number = 0
        for resource in message.resource_logs:
            for scope in resource.scope_logs:
                kept = []
                for record in scope.log_records:
                    if number in wanted:
                        kept.append(record)
                    number += 1
                _replace(scope.log_records, kept)
            _drop_empty(resource.scope_logs, lambda scope: bool(scope.log_records))
        _drop_empty(message.resource_logs, lambda resource: bool(resource.scope_logs))
    return [(first, total // 2), (second, total - total // 2)]


def _halve_metrics(body: bytes) -> list[tuple[Any, int]] | None:
    first, second = _parse_metrics(body), _parse_metrics(body)
    times = sorted({point.time_unix_nano for _, points in _series(first) for point in points})
    if len(times) > 1:
        border = times[len(times) // 2]
        counts = (
            _keep(first, lambda number, point, _: point.time_unix_nano < border),
            _keep(second, lambda number, point, _: point.time_unix_nano >= border),
        )
    else:  # a single row
        total = sum(len(points) for _, points in _series(first))
        if total < 2:
            return None
        counts = (
            _keep(first, lambda number, *_: number < total // 2),
            _keep(second, lambda number, *_: number >= total // 2),
        )
    return [(first, counts[0]), (second, counts[1])]


def _keep_last_and(message: Any, wanted: Callable[[Any], bool]) -> tuple[bytes, int, int]:
    last: dict[tuple[bytes, bytes, bytes], int] = {}
    total = 0
    for key, points in _series(message):
        for point in points:
            total += 1
            series = (*key, b"".join(sorted(pair.SerializeToString() for pair in point.attributes)))
            last[series] = max(last.get(series, 0), point.time_unix_nano)
    final = frozenset(last.values())
    # Select by time and not by series, so that a last value keeps its step.
    kept = _keep(message, lambda _, point, delta: delta or point.time_unix_nano in final or wanted(point))
    return pack(message), kept, total - kept


def _keep(message: Any, wanted: Callable[[int, Any, bool], bool]) -> int:
    """Remove unwanted points, and metrics, scopes and resources without points. Return the number of remaining points.

    `wanted` receives a point's number, the point, and whether it is a delta.
    """
    number = kept_points = 0
    for resource in message.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                data = getattr(metric, metric.WhichOneof("data"))
                delta = getattr(data, "aggregation_temporality", None) == _DELTA
                kept = []
                for point in data.data_points:
                    if wanted(number, point, delta):
                        kept.append(point)
                    number += 1
                kept_points += len(kept)
                _replace(data.data_points, kept)
            _drop_empty(scope.metrics, lambda metric: bool(getattr(metric, metric.WhichOneof("data")).data_points))
        _drop_empty(resource.scope_metrics, lambda scope: bool(scope.metrics))
    _drop_empty(message.resource_metrics, lambda resource: bool(resource.scope_metrics))
    return kept_points


def _series(message: Any) -> list[tuple[tuple[bytes, bytes], Any]]:
    """Return ((resource, metric), points) for every metric."""
    series = []
    for resource in message.resource_metrics:
        source = resource.resource.SerializeToString()
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                series.append(((source, f"{kind} {metric.name}".encode()), getattr(metric, kind).data_points))
    return series


def _join_resources(message: Any) -> None:
    """Merge the metrics of equal resources and scopes, so that their headers are not repeated."""
    _join(message.resource_metrics, "resource", "scope_metrics")
    for resource in message.resource_metrics:
        _join(resource.scope_metrics, "scope", "metrics")


def _join(repeated: Any, header: str, items: str) -> None:
    """Merge entries with equal headers."""
    first: dict[tuple[bytes, str], Any] = {}
    for entry in list(repeated):
        kept = first.setdefault((getattr(entry, header).SerializeToString(deterministic=True), entry.schema_url), entry)
        if kept is not entry:
            getattr(kept, items).extend(getattr(entry, items))
    if len(first) < len(repeated):
        _replace(repeated, list(first.values()))


def _parse_metrics(body: bytes) -> Any:
    message = ExportMetricsServiceRequest.FromString(body)
    for resource in message.resource_metrics:
        for scope in resource.scope_metrics:
            _drop_empty(scope.metrics, lambda metric: metric.WhichOneof("data") is not None)
    return message


def _drop_empty(repeated: Any, full: Callable[[Any], bool]) -> None:
    if not all(full(item) for item in repeated):
        _replace(repeated, [item for item in repeated if full(item)])


def _replace(repeated: Any, items: list[Any]) -> None:
    """Replace the items of a repeated field. They are copied first, because clearing the field deletes its items."""
    copies = []
    for item in items:
        copy = type(item)()
        copy.CopyFrom(item)
        copies.append(copy)
    del repeated[:]
    repeated.extend(copies)
