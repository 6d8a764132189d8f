"""Conversion of distributions and sums to cumulative temporality, for receivers that require it.

The spool contains one point with delta temporality for each logged distribution. Prometheus and Mimir refuse such
points. This module replaces each point with the sum of all points of the stream so far, like the Collector's
`delta_to_cumulative` processor.

As soon as a request is accepted, the sums and the request's ID are written to a file. The next agent continues with
these sums. If it receives the accepted request again, it recognizes the ID and does not add the request twice. If the
file is lost, streams restart with a new start time.
"""

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    NumberDataPoint,
)

from tensormeter.disk.atomic import write_file
from tensormeter.disk.private import make_directory
from tensormeter.exporter import Request
from tensormeter.logger import get_logger
from tensormeter_exporters.request_bodies import decoding, decompress

__all__ = ["DeltaToCumulative"]

logger: Final = get_logger("tensormeter.agent")

_DELTA: Final = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
_CUMULATIVE: Final = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
_STATE: Final = "cumulative.pb"
_GZIP_LEVEL: Final = 1

_MAX_BUCKETS: Final = 160
"""Maximum number of buckets on one side of an exponential histogram, as in OpenTelemetry's SDKs."""

_LEAD: Final = 1_000_000
"""Nanoseconds between a stream's start time and its first point.

If the two times were equal, receivers would treat the start as unknown and the first value as a baseline, without
counting it. The difference is one millisecond, because some receivers store only milliseconds.
"""

_MOST_INTEGER: Final = 1 << 63
"""Smallest integer that does not fit OTLP's signed 64-bit fields. The limit of unsigned counts is twice as large."""

_Point = Any
"""A NumberDataPoint, HistogramDataPoint or ExponentialHistogramDataPoint."""

_Key = tuple[bytes, ...]


@dataclass
class Added:
    """A converted request, and the sums that become valid when the receiver accepts it."""

    request: Request
    id: str
    points: "dict[_Key, _Point]" = field(default_factory=dict)


class DeltaToCumulative:
    """Cumulative sums of one destination's streams. Not thread-safe."""

    def __init__(self, folder: Path | None) -> None:
        """
        Args:
            folder: Folder for the sums, so that they survive restarts; None to keep them only in memory.
        """
        self._file = None if folder is None else folder / _STATE
        self._points: dict[_Key, _Point] = {}
        self._last = ""
        self._load()

    def has(self, request: str) -> bool:
        """Return whether the receiver has already accepted the request.

        The spool still contains such a request if an agent was killed before it updated the spool.
        """
        return request == self._last

    def add(self, request: Request) -> Added:
        """Convert a request to cumulative points. The new sums become valid only when `keep` is called.

        Raises:
            EncodingError: The body cannot be decoded.
        """
        body = decompress(request)
        added = Added(request, request.id)
        with decoding(request):
            message = ExportMetricsServiceRequest.FromString(body)
            for resource in message.resource_metrics:
                who = resource.resource.SerializeToString(deterministic=True)
                for scope in resource.scope_metrics:
                    where = scope.scope.SerializeToString(deterministic=True)
                    for metric in scope.metrics:
                        self._add_metric((who, where), metric, added.points)
        if added.points:
            body = gzip.compress(message.SerializeToString(), _GZIP_LEVEL, mtime=0)
            added.request = Request(request.id, request.signal, body, request.items)
        return added

    def keep(self, added: Added) -> None:
        """Store the sums after the receiver has accepted the request. Blocks while it writes to disk."""
        if not added.points:
            return
        self._points |= added.points
        self._last = added.id
        self._save()

    def _add_metric(self, who: _Key, metric: Any, points: dict[_Key, _Point]) -> None:
        kind = metric.WhichOneof("data")
        if kind not in ("sum", "histogram", "exponential_histogram"):
            return
        data = getattr(metric, kind)
        if data.aggregation_temporality != _DELTA:
            return
        data.aggregation_temporality = _CUMULATIVE
        for point in sorted(data.data_points, key=lambda point: point.time_unix_nano):
            attributes = sorted(pair.SerializeToString(deterministic=True) for pair in point.attributes)
            key = (*who, metric.name.encode(), metric.unit.encode(), kind.encode(), b"".join(attributes))
            before = points.get(key) or self._points.get(key)
            if before is None or not _fits(before, point):
                _begin(point)
            else:
                _add(before, point)
            points[key] = point

    def _load(self) -> None:
        if self._file is None:
            return
        try:
            first, _, body = self._file.read_bytes().partition(b"\n")
            name, _, expected = first.partition(b" ")
            if expected and expected != b"%08x" % zlib.crc32(body, zlib.crc32(name)):  # absent in older files
                raise ValueError("it does not match its checksum")
            for key, point in _read(body):
                self._points[key] = point
            self._last = name.decode()
        except FileNotFoundError:
            pass
        except (OSError, DecodeError, ValueError, IndexError) as error:
            self._points.clear()
            logger.warning("cannot read %s (%s); the sums of distributions restart from zero", self._file, error)

    def _save(self) -> None:
        if self._file is None:
            return
        try:
            make_directory(self._file.parent)
            name, body = self._last.encode(), b"".join(_write(self._points))
            write_file(self._file, b"%b %08x\n%b" % (name, zlib.crc32(body, zlib.crc32(name)), body))
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.unlink()  # it is outdated
            logger.warning("cannot write %s (%s); the next agent would restart the sums from zero", self._file, error)


def _begin(point: _Point) -> None:
    """Convert a delta point in place to the first point of a cumulative stream."""
    start = point.start_time_unix_nano or point.time_unix_nano
    if start >= point.time_unix_nano:
        start = point.time_unix_nano - _LEAD
    point.start_time_unix_nano = max(start, 0)
    if isinstance(point, HistogramDataPoint | ExponentialHistogramDataPoint):
        _drop_sum_of_negatives(point)


def _fits(before: _Point, point: _Point) -> bool:
    """Return whether a delta point can be added to a stream. If it cannot, the stream must restart."""
    if isinstance(point, NumberDataPoint):
        kind = point.WhichOneof("value")
        if kind != before.WhichOneof("value"):
            return False
        return bool(kind != "as_int" or -_MOST_INTEGER <= point.as_int + before.as_int < _MOST_INTEGER)
    if point.count + before.count >= 2 * _MOST_INTEGER:
        return False
    if isinstance(point, HistogramDataPoint):
        same = list(point.explicit_bounds) == list(before.explicit_bounds)
        return bool(same and len(point.bucket_counts) == len(before.bucket_counts))
    return True


def _add(before: _Point, point: _Point) -> None:
    """Convert a delta point in place to the next point of a stream. `_fits` must be true."""
    if isinstance(point, NumberDataPoint):
        if point.WhichOneof("value") == "as_int":
            point.as_int += before.as_int
        else:
            point.as_double += before.as_double
    elif isinstance(point, HistogramDataPoint):
        _replace(point.bucket_counts, [a + b for a, b in zip(point.bucket_counts, before.bucket_counts, strict=True)])
        _add_statistics(before, point)
    else:
        _add_exponential(before, point)
        _add_statistics(before, point)
    point.start_time_unix_nano = before.start_time_unix_nano


def _add_statistics(before: _Point, point: _Point) -> None:
    for name, choose in (("min", min), ("max", max)):
        both = [getattr(summand, name) for summand in (before, point) if summand.HasField(name)]
        known = all(summand.HasField(name) or not summand.count for summand in (before, point))
        point.ClearField(name)
        if both and known:
            setattr(point, name, choose(both))
    if before.HasField("sum") and point.HasField("sum"):
        point.sum += before.sum
    else:
        point.ClearField("sum")
    point.count += before.count
    _drop_sum_of_negatives(point)


def _drop_sum_of_negatives(point: _Point) -> None:
    """Drop a sum that may decrease, as OTLP requires. Receivers treat sums as counters and a decrease as a restart."""
    if point.HasField("min") and point.min < 0:
        point.ClearField("sum")


def _add_exponential(before: _Point, point: _Point) -> None:
    """Add buckets at the coarser of the two scales, or at an even coarser scale if a side would exceed 160 buckets.

    Bucket ``i`` lies inside bucket ``i >> d`` of a scale that is smaller by ``d``, so the merge is exact. The larger of
    the two zero buckets is kept. Buckets that overlap the zero bucket are merged into it, and the zero bucket is
    extended to the end of these buckets.
    """
    sides: dict[str, dict[int, int]] = {"positive": {}, "negative": {}}
    scale = min(before.scale, point.scale)
    for summand in (before, point):
        for name, buckets in sides.items():
            side = getattr(summand, name)
            for number, count in enumerate(side.bucket_counts):
                if count:
                    index = side.offset + number >> summand.scale - scale
                    buckets[index] = buckets.get(index, 0) + count
    threshold = max(before.zero_threshold, point.zero_threshold)
    zeros = before.zero_count + point.zero_count
    if before.zero_threshold != point.zero_threshold:
        inside = {index for buckets in sides.values() for index in buckets if _lower_bound(index, scale) < threshold}
        threshold = max([threshold, *(_lower_bound(index + 1, scale) for index in inside)])
        zeros += sum(buckets.pop(index, 0) for buckets in sides.values() for index in inside)
    coarser = 0
    while any(
        buckets and (max(buckets) >> coarser) - (min(buckets) >> coarser) >= _MAX_BUCKETS for buckets in sides.values()
    ):
        coarser += 1
    point.scale = scale - coarser
    point.zero_threshold = threshold
    point.zero_count = zeros
    for name, buckets in sides.items():
        merged: dict[int, int] = {}
        for index, count in buckets.items():
            merged[index >> coarser] = merged.get(index >> coarser, 0) + count
        side = getattr(point, name)
        first = min(merged, default=0)
        side.offset = first
        _replace(
            side.bucket_counts, [merged.get(index, 0) for index in range(first, max(merged, default=first - 1) + 1)]
        )


def _lower_bound(index: int, scale: int) -> float:
    """Return the lower bound of a bucket (OpenTelemetry's data model: base = 2^(2^-scale))."""
    try:
        return float(2.0 ** (index * 2.0**-scale))
    except OverflowError:
        return float("inf")


def _replace(repeated: Any, values: list[int]) -> None:
    del repeated[:]
    repeated.extend(values)


_TYPES: Final[dict[str, Any]] = {
    "sum": NumberDataPoint,
    "histogram": HistogramDataPoint,
    "exponential_histogram": ExponentialHistogramDataPoint,
}


def _write(points: dict[_Key, _Point]) -> Iterator[bytes]:
    """Yield the parts of each key, followed by its point. Each part and point is preceded by its length."""
    for key, point in points.items():
        for part in (*key, point.SerializeToString()):
            yield len(part).to_bytes(4, "little") + part


def _read(body: bytes) -> Iterator[tuple[_Key, _Point]]:
    """Yield the keys and points that `_write` has written.

    Raises:
        ValueError, DecodeError: The file is truncated or damaged.
    """
    parts: list[bytes] = []
    position = 0
    while position < len(body):
        size = int.from_bytes(body[position : position + 4], "little")
        part = body[position + 4 : position + 4 + size]
        if len(part) < size:
            raise ValueError("it is truncated")
        parts.append(part)
        position += 4 + size
        if len(parts) == _PARTS:
            *key, point = parts
            kind = key[4].decode()
            if kind not in _TYPES:
                raise ValueError(f"unknown kind {kind!r}")
            yield tuple(key), _TYPES[kind].FromString(point)
            parts = []
    if parts:
        raise ValueError("it is truncated")


_PARTS: Final = 7
"""Number of parts in an entry: resource, scope, name, unit, kind, attributes and point."""
