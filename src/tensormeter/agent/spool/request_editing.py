"""Editing of encoded requests that are too large or do not fit into a full spool.

`halves` splits an oversized request in two. `thinned` and `condensed` join and reduce requests that do not fit into a
full spool. All three accept OTLP messages with any kind of point, and return the same bytes for the same input.

The points of a row have the same time. `halves` keeps them together. `thinned` and `condensed` choose the points of each
series, so that a series which only some rows contain is thinned evenly too, and keep the step of each point that remains.
"""

import gzip
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

from tensormeter.conventions.semconv import STEP_METRIC
from tensormeter.exporter import Request

__all__ = [
    "Reduced",
    "SeriesKey",
    "condensed",
    "halves",
    "keep_metrics",
    "keep_points",
    "last_times",
    "pack",
    "thinned",
]

_GZIP_LEVEL: Final = 1
_DELTA: Final = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
_TEMPORAL: Final = frozenset({"sum", "histogram", "exponential_histogram"})
"""Kinds of metrics that have a temporality. Asking the others for it takes long."""

SeriesKey = tuple[str, bytes]
"""Kind and name of a series' metric, and its attributes."""


class Reduced(NamedTuple):
    """A request from which points have been removed.

    Attributes:
        body: Body of the request.
        items: Number of points in it, including steps.
        lost: Number of points removed. The steps of rows do not count.
    """

    body: bytes
    items: int
    lost: int


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


def thinned(bodies: Sequence[bytes], later: Mapping[SeriesKey, int] = MappingProxyType({})) -> Reduced:
    """Join metrics requests, and keep every second point of each series, starting with the first.

    Points in the same rows are preferred, so that most rows are kept or removed as a whole. The last point of a series is
    kept as well, unless other requests contain later points of the series. All points of delta sums and delta histograms are kept,
    because each is part of a total.

    Args:
        bodies: Bodies of consecutive requests of one process.
        later: Times of points in other requests, in nanoseconds, by series.

    Raises:
        DecodeError, OSError, EOFError, zlib.error: A body cannot be decompressed or decoded.
    """
    return _reduced(bodies, later, _every_second)


def condensed(bodies: Sequence[bytes]) -> Reduced:
    """Join metrics requests, keeping only the last point of each series and the points that `thinned` always keeps.

    Raises:
        DecodeError, OSError, EOFError, zlib.error: A body cannot be decompressed or decoded.
    """
    return _reduced(bodies, {}, lambda _, times: range(len(times) - 1))


def last_times(body: bytes) -> dict[SeriesKey, int]:
    """Return the times of the last points in a metrics request, in nanoseconds, by series.

    Raises:
        DecodeError, OSError, EOFError, zlib.error: The body cannot be decompressed or decoded.
    """
    message = _parse_metrics(gzip.decompress(body))
    times: dict[SeriesKey, int] = {}
    for resource in message.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                points = _data(metric).data_points
                for attributes, positions in _by_attributes(points).items():
                    key = _name(metric), attributes
                    times[key] = max(times.get(key, 0), *(points[position].time_unix_nano for position in positions))
    return times


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
    _keep(message, lambda _, point: wanted(point))


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
    times = sorted({point.time_unix_nano for point in _all_points(first)})
    if len(times) > 1:
        border = times[len(times) // 2]
        counts = (
            _keep(first, lambda _, point: point.time_unix_nano < border),
            _keep(second, lambda _, point: point.time_unix_nano >= border),
        )
    else:  # a single row
        total = len(_all_points(first))
        if total < 2:
            return None
        counts = (
            _keep(first, lambda number, _: number < total // 2),
            _keep(second, lambda number, _: number >= total // 2),
        )
    return [(first, counts[0]), (second, counts[1])]


def _reduced(
    bodies: Sequence[bytes],
    later: Mapping[SeriesKey, int],
    unwanted: Callable[[Collection[int], Sequence[int]], Iterable[int]],
) -> Reduced:
    """Join requests and remove the points at the positions that `unwanted` returns, but no series' last point.

    `unwanted` receives the times of every second row, and those of a series' points in ascending order.
    """
    # Concatenated protobuf messages are one message, whose repeated fields contain the items of both.
    message = _parse_metrics(b"".join(map(gzip.decompress, bodies)))
    _join_resources(message)
    items = lost = 0
    for resource in message.resource_metrics:
        metrics = [metric for scope in resource.scope_metrics for metric in scope.metrics]
        odd = frozenset(sorted({time for metric in metrics for time in _times(metric)})[1::2])
        kept_times: set[int] = set()
        for metric in metrics:
            if metric.name == STEP_METRIC:
                continue
            lost += len(removed := _superfluous(metric, later, partial(unwanted, odd)))
            _remove(_data(metric).data_points, removed)
            kept_times.update(_times(metric))
        for metric in metrics:
            if metric.name == STEP_METRIC:
                times = _times(metric)
                last = max(times, default=0)
                needed = kept_times | ({last} if later.get((_name(metric), b""), 0) <= last else set())
                _remove(_data(metric).data_points, {at for at, time in enumerate(times) if time not in needed})
            items += len(_data(metric).data_points)
        for scope in resource.scope_metrics:
            _drop_empty(scope.metrics, lambda metric: bool(_data(metric).data_points))
    return Reduced(pack(message), items, lost)


def _superfluous(
    metric: Any, later: Mapping[SeriesKey, int], unwanted: Callable[[Sequence[int]], Iterable[int]]
) -> set[int]:
    """Return the positions of a metric's points to remove. Parts of totals and last points are none of them."""
    points = _data(metric).data_points
    if len(points) == 1 or _temporality(metric) == _DELTA:
        return set()
    times = _times(metric)
    chosen: set[int] = set()
    for attributes, positions in _by_attributes(points).items():
        positions.sort(key=times.__getitem__)
        chosen.update(positions[at] for at in unwanted([times[position] for position in positions]))
        if later.get((_name(metric), attributes), 0) <= times[positions[-1]]:
            chosen.discard(positions[-1])
    return chosen


def _times(metric: Any) -> list[int]:
    return [point.time_unix_nano for point in _data(metric).data_points]


def _every_second(odd: Collection[int], times: Sequence[int]) -> list[int]:
    """Return one position of each pair of neighbours: the second, unless only that is in an even row.

    The first point is always kept.
    """
    return [
        at if at and times[at] in odd and times[at + 1] not in odd else at + 1 for at in range(0, len(times) - 1, 2)
    ]


def _keep(message: Any, wanted: Callable[[int, Any], bool]) -> int:
    """Remove unwanted points, and metrics, scopes and resources without points. Return the number of remaining points.

    `wanted` receives a point's number and the point.
    """
    number = kept_points = 0
    for resource in message.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                points = _data(metric).data_points
                kept = []
                for point in points:
                    if wanted(number, point):
                        kept.append(point)
                    number += 1
                kept_points += len(kept)
                _replace(points, kept)
            _drop_empty(scope.metrics, lambda metric: bool(_data(metric).data_points))
        _drop_empty(resource.scope_metrics, lambda scope: bool(scope.metrics))
    _drop_empty(message.resource_metrics, lambda resource: bool(resource.scope_metrics))
    return kept_points


def _all_points(message: Any) -> list[Any]:
    """Return the points of all metrics."""
    return [
        point
        for resource in message.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in _data(metric).data_points
    ]


def _name(metric: Any) -> str:
    return f"{metric.WhichOneof('data')} {metric.name}"


def _data(metric: Any) -> Any:
    return getattr(metric, metric.WhichOneof("data"))


def _temporality(metric: Any) -> int | None:
    kind = metric.WhichOneof("data")
    return getattr(metric, kind).aggregation_temporality if kind in _TEMPORAL else None


def _by_attributes(points: Any) -> dict[bytes, list[int]]:
    """Return the positions of a metric's points by their attributes."""
    positions: dict[bytes, list[int]] = {}
    for position, point in enumerate(points):
        attributes = point.attributes
        key = b"".join(sorted(pair.SerializeToString() for pair in attributes)) if attributes else b""
        positions.setdefault(key, []).append(position)
    return positions


def _join_resources(message: Any) -> None:
    """Merge equal resources, scopes and metrics, so that their headers are not repeated."""
    _join(message.resource_metrics, lambda entry: _header(entry, entry.resource), lambda entry: entry.scope_metrics)
    for resource in message.resource_metrics:
        _join(resource.scope_metrics, lambda entry: _header(entry, entry.scope), lambda entry: entry.metrics)
        for scope in resource.scope_metrics:
            _join(scope.metrics, _description, lambda metric: _data(metric).data_points)


def _header(entry: Any, header: Any) -> tuple[object, ...]:
    return header.SerializeToString(deterministic=True), entry.schema_url


def _description(metric: Any) -> tuple[object, ...]:
    """Return everything in a metric except its points."""
    kind = metric.WhichOneof("data")
    monotonic = kind == "sum" and metric.sum.is_monotonic
    metadata = b"".join(item.SerializeToString() for item in metric.metadata) if metric.metadata else b""
    return kind, metric.name, metric.unit, metric.description, _temporality(metric), monotonic, metadata


def _join(repeated: Any, key: Callable[[Any], tuple[object, ...]], items: Callable[[Any], Any]) -> None:
    """Merge the items of entries with equal keys."""
    first: dict[tuple[object, ...], Any] = {}
    merged = set()
    for position, entry in enumerate(repeated):
        kept = first.setdefault(key(entry), entry)
        if kept is not entry:
            items(kept).extend(items(entry))
            merged.add(position)
    _remove(repeated, merged)


def _remove(repeated: Any, positions: Collection[int]) -> None:
    """Remove the items of a repeated field at some positions."""
    end = 0  # remove neighbours together, from the last to the first
    for position in sorted(positions, reverse=True):
        end = end or position + 1
        if position - 1 not in positions:
            del repeated[position:end]
            end = 0


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
