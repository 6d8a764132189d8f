"""Timing of log calls: duration histograms in the ring, which the agent reads, and a stopwatch that detects slow calls."""

import time
from typing import Final

from tensormeter.ring.file import RingFile
from tensormeter.ring.format import DURATION_BUCKETS, SHORTEST_DURATION_BITS, LogPath

__all__ = ["LogTiming", "Stopwatch"]

_SLOW: Final = 1_000_000
"""Duration in nanoseconds above which a log call counts as slow and causes a warning."""


class LogTiming:
    """Counts calls to `Recorder.log` and to Python writers by their duration. The C writer counts its own calls.

    Any thread may use this object. If several threads count at the same time, a count may be lost.
    """

    def __init__(self, ring: RingFile, path: LogPath = LogPath.GENERAL) -> None:
        """
        Args:
            ring: Ring that stores the counts.
            path: Code path of the calls.
        """
        self._words = ring.words
        self._start = ring.log_durations_offset(path) >> 3

    def add(self, duration: int) -> None:
        """Count a call.

        Args:
            duration: Duration in nanoseconds. If the clock is set back, the duration may be negative, and counts as 0.
        """
        duration = max(duration, 0)
        bucket = max(0, max(duration - 1, 0).bit_length() - SHORTEST_DURATION_BITS)
        self._words[self._start] += duration
        self._words[self._start + 1 + min(bucket, DURATION_BUCKETS - 1)] += 1


class Stopwatch:
    """A stopwatch that times one log call, from its construction to `stop`.

    Attributes:
        duration: Duration of the call in nanoseconds.
        running: CPU time that the thread used during a slow call, in nanoseconds. 0 for other calls.
    """

    __slots__ = ("_cpu", "_wall", "duration", "running")

    def __init__(self) -> None:
        self.duration = 0
        self.running = 0
        self._cpu = time.thread_time_ns()
        self._wall = time.perf_counter_ns()

    def stop(self) -> None:
        """Stop the stopwatch. Call this method at the end of the log call."""
        self.duration = time.perf_counter_ns() - self._wall
        if self.duration > _SLOW:
            self.running = time.thread_time_ns() - self._cpu

    @property
    def slow(self) -> bool:
        """Whether the call took more than a millisecond."""
        return self.duration > _SLOW

    @property
    def waited(self) -> bool:
        """Whether the thread spent more than half of a slow call waiting."""
        return 2 * self.running < self.duration
