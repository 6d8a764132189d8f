"""Reduction of encoded requests that do not fit into a full spool.

`thinned` and `condensed` accept metrics with any kind of point, and return the same bytes for the same input. They choose
the points of each series, so that a series which only some rows contain is thinned evenly too, and keep the step of each
point that remains.
"""

import gzip
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

from tensormeter.conventions.semconv import STEP_METRIC
from tensormeter.otlp.point_selection import data_of, drop_items, parse_metrics

__all__ = [
    "Reduced",
    "SeriesKey",
    "condensed",
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
    message = parse_metrics(gzip.decompress(body))
    times: dict[SeriesKey, int] = {}
    for resource in message.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                points = data_of(metric).data_points
                for attributes, positions in _by_attributes(points).items():
                    key = _name(metric), attributes
                    times[key] = max(times.get(key, 0), *(points[position].time_unix_nano for position in positions))
    return times


def pack(message: Any) -> bytes:
    """Return a message as a request body. Equal messages give equal bytes."""
    return gzip.compress(message.SerializeToString(), _GZIP_LEVEL, mtime=0)


def _reduced(
    bodies: Sequence[bytes],
    later: Mapping[SeriesKey, int],
    unwanted: Callable[[Collection[int], Sequence[int]], Iterable[int]],
) -> Reduced:
    """Join requests and remove the points at the positions that `unwanted` returns, but no series' last point.

    `unwanted` receives the times of every second row, and those of a series' points in ascending order.
    """
    # Concatenated protobuf messages are one message, whose repeated fields contain the items of both.
    message = parse_metrics(b"".join(map(gzip.decompress, bodies)))
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
            _remove(data_of(metric).data_points, removed)
            kept_times.update(_times(metric))
        for metric in metrics:
            if metric.name == STEP_METRIC:
                times = _times(metric)
                last = max(times, default=0)
                needed = kept_times | ({last} if later.get((_name(metric), b""), 0) <= last else set())
                _remove(data_of(metric).data_points, {at for at, time in enumerate(times) if time not in needed})
            items += len(data_of(metric).data_points)
        for scope in resource.scope_metrics:
            drop_items(scope.metrics, lambda metric: bool(data_of(metric).data_points))
    return Reduced(pack(message), items, lost)


def _superfluous(
    metric: Any, later: Mapping[SeriesKey, int], unwanted: Callable[[Sequence[int]], Iterable[int]]
) -> set[int]:
    """Return the positions of a metric's points to remove. Parts of totals and last points are none of them."""
    points = data_of(metric).data_points
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
    return [point.time_unix_nano for point in data_of(metric).data_points]


def _every_second(odd: Collection[int], times: Sequence[int]) -> list[int]:
    """Return one position of each pair of neighbours: the second, unless only that is in an even row.

    The first point is always kept.
    """
    return [
        at if at and times[at] in odd and times[at + 1] not in odd else at + 1 for at in range(0, len(times) - 1, 2)
    ]


def _name(metric: Any) -> str:
    return f"{metric.WhichOneof('data')} {metric.name}"


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
            _join(scope.metrics, _description, lambda metric: data_of(metric).data_points)


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
