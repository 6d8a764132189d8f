"""Self-metrics of tensormeter: the cost of log calls, drop counts and the agent's lag."""

import time
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.agent.ingest.batch_processor import BatchMeasurementProcessor
from tensormeter.conventions.semconv import DROPPED
from tensormeter.otlp.batch import Gauge, Histogram, Series, Sum
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import DURATION_BUCKETS, SHORTEST_DURATION_BITS, HeaderWord, LogPath

__all__ = ["SelfMetrics"]

_BOUNDS: Final[NDArray[np.float64]] = np.array(
    [2**bits / 1e9 for bits in range(SHORTEST_DURATION_BITS, SHORTEST_DURATION_BITS + DURATION_BUCKETS - 1)]
)


class SelfMetrics:
    """Self-metrics of one process. Only the agent's main thread may use this class, which never blocks.

    `tensormeter.log.duration`: histogram of call durations in seconds, by `tensormeter.log.path`. One in 64 `direct`
    calls (with a known row of plain numbers) and every `general` call is timed.
    `tensormeter.rows`: number of rows that this agent has read.
    `tensormeter.dropped`: number of points that could not be recorded, by `tensormeter.reason`.
    `tensormeter.ring.utilization`: largest share of any lane that was read but is not in the spool yet.
    `tensormeter.agent.lag`: seconds since the agent read the oldest row that is not in the spool yet.
    `tensormeter.spool.requests`: number of requests that are waiting for a receiver.
    """

    def __init__(self, ring: RingFile, processor: BatchMeasurementProcessor, interval: float) -> None:
        """
        Args:
            ring: Ring of the process.
            processor: Processor that reads the ring.
            interval: Seconds between two reports; 0 to disable reports.
        """
        self._ring = ring
        self._processor = processor
        self._interval = interval
        self._created = ring.words[HeaderWord.CREATED]
        self._since = time.time_ns()
        self._next = time.monotonic() + interval

    def due(self) -> bool:
        return self._interval > 0 and time.monotonic() >= self._next

    def report(self, pending_requests: int) -> list[Series]:
        """Return the current values, with one point per series; empty if reports are disabled.

        Args:
            pending_requests: Number of requests that are waiting for a receiver.
        """
        if not self._interval:
            return []
        self._next = time.monotonic() + self._interval
        now = np.array([max(time.time_ns(), self._created + 1)], np.uint64)
        created, since = np.array([self._created], np.uint64), np.array([self._since], np.uint64)
        gauges = [
            (
                "tensormeter.ring.utilization",
                "1",
                self._processor.utilization,
                "Largest fraction of a lane whose rows were read but are not in the spool yet.",
            ),
            (
                "tensormeter.agent.lag",
                "s",
                self._processor.lag,
                "Time since the agent read the oldest row that is not in the spool yet.",
            ),
            ("tensormeter.spool.requests", "{request}", pending_requests, "Requests waiting for delivery."),
        ]
        return [
            *self._log_durations(now, created),
            Sum(
                "tensormeter.rows",
                now,
                np.array([self._processor.rows], np.int64),
                since,
                unit="{row}",
                description="Rows read by the agent.",
            ),
            *self._drops(now, created),
            *(
                Gauge(name, now, np.array([value]), unit=unit, description=description)
                for name, unit, value, description in gauges
            ),
        ]

    def _log_durations(self, now: NDArray[np.uint64], created: NDArray[np.uint64]) -> list[Series]:
        series: list[Series] = []
        for path in LogPath:
            total, counts = self._ring.log_durations(path)
            if sum(counts):
                none = np.array([np.nan])
                series.append(
                    Histogram(
                        "tensormeter.log.duration",
                        now,
                        created,
                        np.array([sum(counts)], np.uint64),
                        np.array([total / 1e9]),
                        none,
                        none,
                        _BOUNDS,
                        np.array([counts], np.uint64),
                        unit="s",
                        description="Duration of log calls.",
                        attributes={"tensormeter.log.path": path.name.lower()},
                    ),
                )
        return series

    def _drops(self, now: NDArray[np.uint64], created: NDArray[np.uint64]) -> list[Series]:
        dropped = self._ring.drops()
        if self._processor.lost:
            dropped["device_unfinished"] = dropped.get("device_unfinished", 0) + self._processor.lost
        return [
            Sum(
                DROPPED,
                now,
                np.array([count], np.int64),
                created,
                unit="{point}",
                description="Points that could not be recorded.",
                attributes={"tensormeter.reason": reason},
            )
            for reason, count in dropped.items()
        ]
