"""Requests of several processes, which are sent once enough points or records have come together."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import DataPointFlags

from tensormeter.errors import EncodingError
from tensormeter.importers.registry import SourceError
from tensormeter.importers.sender import Sender
from tensormeter.otlp.batch import Batch, Event, Gauge, Series, Sum
from tensormeter.otlp.encode import encode_events, encode_metrics

__all__ = ["INVALID", "PointRequests", "RecordRequests"]

_MOST_POINTS: Final = 50_000
_MOST_SERIES: Final = 20_000
_MOST_BYTES: Final = 4 << 20
_MOST_RECORDS: Final = 2_000
_NO_RECORDED_VALUE: Final = DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK

INVALID: Final = (EncodingError, ValueError, TypeError, OverflowError, RecursionError)
"""Errors of values that OTLP cannot represent."""

Resources = Mapping[str, Mapping[str, Any]]


class PointRequests:
    """Requests with points. Each has up to 50,000 points, or one distribution series with more."""

    def __init__(self, sender: Sender, resources: Resources) -> None:
        """
        Args:
            sender: Destination of the requests.
            resources: Resource of each process, by ID.
        """
        self._sender = sender
        self._resources = resources
        self._waiting: list[tuple[str, Series]] = []
        self._points = 0

    def add(self, process: str, series: Series) -> None:
        """Add points of one process, which must be one of the resources."""
        self._waiting.append((process, series))
        self._points += len(series.times)
        if self._points >= _MOST_POINTS or len(self._waiting) >= _MOST_SERIES:
            self.flush()

    def add_gaps(self, process: str, series: Gauge | Sum) -> None:
        """Send the times of a series as gaps, after all points that were added before."""
        self.flush()
        request = ExportMetricsServiceRequest.FromString(self._encode([(process, series)]))
        for metric in request.resource_metrics[0].scope_metrics[0].metrics:
            for point in (metric.gauge if isinstance(series, Gauge) else metric.sum).data_points:
                point.ClearField("value")
                point.flags = _NO_RECORDED_VALUE
        self._sender.send("metrics", request.SerializeToString(), len(series.times))

    def flush(self) -> None:
        """Send what was added."""
        if self._waiting:
            waiting, points = self._waiting, self._points
            self._waiting, self._points = [], 0
            self._sender.send("metrics", self._encode(waiting), points)

    def _encode(self, entries: Sequence[tuple[str, Series]]) -> bytes:
        batches = [
            Batch(self._resources[process], [series for _, series in group])
            for process, group in groupby(entries, lambda entry: entry[0])
        ]
        try:
            return encode_metrics(batches)
        except INVALID as error:
            names = sorted({series.name for _, series in entries})
            raise SourceError(f"points of {', '.join(names[:3])}: cannot send them ({error})") from None


class RecordRequests:
    """Requests with log records. Each has up to 2,000 records or 4 MiB, or one larger record."""

    def __init__(self, sender: Sender, resources: Resources, report: Callable[[str], None]) -> None:
        """Create an empty request.

        Args:
            sender: Destination of the requests.
            resources: Resource of each process, by ID.
            report: Function that receives messages about records that cannot be encoded.
        """
        self._sender = sender
        self._report = report
        self._resources = resources
        self._parts: list[bytes] = []
        self._waiting: list[Event] = []
        self._process = ""
        self._records = self._bytes = 0

    def add(self, process: str, record: Event, size: int) -> None:
        """Add a record of one process, which must be one of the resources. `size` is its approximate number of bytes."""
        if self._waiting and (process != self._process or self._bytes + size > _MOST_BYTES):
            self._encode()
        if self._bytes + size > _MOST_BYTES or self._records >= _MOST_RECORDS:
            self.flush()
        self._process = process
        self._waiting.append(record)
        self._records += 1
        self._bytes += size

    def flush(self) -> None:
        """Send what was added."""
        self._encode()
        if self._parts:
            parts, records = self._parts, self._records
            self._parts, self._records, self._bytes = [], 0, 0
            self._sender.send("logs", b"".join(parts), records)

    def _encode(self) -> None:
        """Encode the waiting records, which belong to one process. Protobuf messages can be concatenated."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            resource = self._resources[self._process]
            try:
                self._parts.append(encode_events(resource, waiting, derive_severity=False))
            except INVALID as error:
                if len(waiting) == 1:
                    name = waiting[0].name or "a log line"
                    self._report(f"{name} of process {self._process}: cannot send it ({error})")
                    return
                for record in waiting:
                    self._waiting = [record]
                    self._encode()
