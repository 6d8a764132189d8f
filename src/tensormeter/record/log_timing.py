"""Durations of log calls: histograms in the ring, which the agent reads, and a stopwatch that detects slow calls."""

import time
from typing import Final

from tensormeter.ring.file import RingFile
from tensormeter.ring.format import DURATION_BUCKETS, SHORTEST_DURATION_BITS, LogPath

__all__ = ["LogTiming", "Stopwatch"]

_SLOW: Final = 1_000_000
"""Duration in nanoseconds above which a log call causes a warning."""


class LogTiming:
    """Counts the durations of calls of `Recorder.log` and of writers generated in Python. The C writer counts its own calls.

    Any thread may call it. If threads count at the same time, a count can be missing.
    """

    def __init__(self, ring: RingFile, path: LogPath = LogPath.GENERAL) -> None:
        """
        Args:
            ring: Ring that stores the counts.
            path: Path of the calls.
        """
        self._words = ring.words
        self._start = ring.log_durations_offset(path) >> 3

    def add(self, duration: int) -> None:
        """Count a call.

        Args:
            duration: Duration in nanoseconds. A negative one, after the clock was set back, counts as 0.
        """
        duration = max(duration, 0)
        bucket = max(0, max(duration - 1, 0).bit_length() - SHORTEST_DURATION_BITS)
        self._words[self._start] += duration
        self._words[self._start + 1 + min(bucket, DURATION_BUCKETS - 1)] += 1


class Stopwatch:
    """Times one log call from construction to `stop`.

    Attributes:
        duration: Duration of the call in nanoseconds.
        running: Processor time of the thread during a slow call, in nanoseconds.
    """

    __slots__ = ("_cpu", "_wall", "duration", "running")

    def __init__(self) -> None:
        self.duration = 0
        self.running = 0
        self._cpu = time.thread_time_ns()
        self._wall = time.perf_counter_ns()

    def stop(self) -> None:
        """Stop at the end of the call."""
        self.duration = time.perf_counter_ns() - self._wall
        if self.duration > _SLOW:
            self.running = time.thread_time_ns() - self._cpu

    @property
    def slow(self) -> bool:
        """Whether the call took more than a millisecond."""
        return self.duration > _SLOW

    @property
    def waited(self) -> bool:
        """Whether the thread of a slow call waited for most of the duration."""
        return 2 * self.running < self.duration
