"""Requests with points of several processes, which are sent once enough points have come together."""

from collections.abc import Sequence
from itertools import groupby
from typing import Final

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import DataPointFlags

from tensormeter.importers.record_requests import INVALID, Resources
from tensormeter.importers.registry import SourceError
from tensormeter.importers.sender import Sender
from tensormeter.otlp.batch import Batch, Gauge, Series, Sum
from tensormeter.otlp.encode import encode_metrics

__all__ = ["PointRequests"]

_MOST_POINTS: Final = 50_000
_MOST_SERIES: Final = 20_000
_NO_RECORDED_VALUE: Final = DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK


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
