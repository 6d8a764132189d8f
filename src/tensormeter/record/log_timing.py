"""What log calls cost: how long each took, counted in the ring, where the agent finds it; and a word when one is slow."""

import time
from typing import Final

from tensormeter.ring.file import RingFile
from tensormeter.ring.format import DURATION_BUCKETS, SHORTEST_DURATION_BITS, LogPath

__all__ = ["LogTiming", "Stopwatch"]

_SLOW: Final = 1_000_000
"""Nanoseconds from which on a log call is worth a warning."""


class LogTiming:
    """Counts the durations of calls through `Recorder.log` and of writers made in Python; the C writer counts its own.

    Threads may count at the same time; a count can then be missing.
    """

    def __init__(self, ring: RingFile, path: LogPath = LogPath.GENERAL) -> None:
        self._words = ring.words
        self._start = ring.log_durations_offset(path) >> 3

    def add(self, duration: int) -> None:
        """Count a call of so many nanoseconds; none, if the clock was set back meanwhile."""
        duration = max(duration, 0)
        bucket = max(0, max(duration - 1, 0).bit_length() - SHORTEST_DURATION_BITS)
        self._words[self._start] += duration
        self._words[self._start + 1 + min(bucket, DURATION_BUCKETS - 1)] += 1


class Stopwatch:
    """Times one log call: its duration, and how much of it the thread was running."""

    __slots__ = ("_cpu", "_wall", "duration", "running")

    def __init__(self) -> None:
        self.duration = 0
        self.running = 0
        self._cpu = time.thread_time_ns()
        self._wall = time.perf_counter_ns()

    def stop(self) -> None:
        """The call is over."""
        self.duration = time.perf_counter_ns() - self._wall
        if self.duration > _SLOW:
            self.running = time.thread_time_ns() - self._cpu

    @property
    def slow(self) -> bool:
        return self.duration > _SLOW

    @property
    def waited(self) -> bool:
        """Of a slow call: whether the thread was not running for most of it."""
        return 2 * self.running < self.duration
