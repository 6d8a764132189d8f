"""Division of OTLP requests that are too large for their receiver.

A metrics request with several rows is divided between two rows, and a single row between two points. The points of a row
have the same time. The same input always gives the same bytes.
"""

from typing import Literal, NamedTuple

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tensormeter.otlp.point_selection import all_points, drop_items, keep_points, parse_metrics, replace_items

__all__ = ["Half", "halve"]


class Half(NamedTuple):
    """One half of a request, and its number of data points or log records."""

    message: ExportMetricsServiceRequest | ExportLogsServiceRequest
    items: int


def halve(signal: Literal["metrics", "logs"], body: bytes) -> tuple[Half, Half] | None:
    """Return the two halves of an uncompressed request; None for a single item.

    Raises:
        DecodeError: The body cannot be decoded.
    """
    return _halve_logs(body) if signal == "logs" else _halve_metrics(body)


def _halve_logs(body: bytes) -> tuple[Half, Half] | None:
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
                replace_items(scope.log_records, kept)
            drop_items(resource.scope_logs, lambda scope: bool(scope.log_records))
        drop_items(message.resource_logs, lambda resource: bool(resource.scope_logs))
    return Half(first, total // 2), Half(second, total - total // 2)


def _halve_metrics(body: bytes) -> tuple[Half, Half] | None:
    first, second = parse_metrics(body), parse_metrics(body)
    times = sorted({point.time_unix_nano for point in all_points(first)})
    if len(times) > 1:
        border = times[len(times) // 2]
        counts = (
            keep_points(first, lambda _, point: point.time_unix_nano < border),
            keep_points(second, lambda _, point: point.time_unix_nano >= border),
        )
    else:  # a single row
        total = len(all_points(first))
        if total < 2:
            return None
        counts = (
            keep_points(first, lambda number, _: number < total // 2),
            keep_points(second, lambda number, _: number >= total // 2),
        )
    return Half(first, counts[0]), Half(second, counts[1])
