"""Timing events of a device, and the lag of the device behind the host.

CUDA returns the time between two events as float32 milliseconds. To keep their precision, device times are float64 sums of the
times between consecutive events. The device clock and the host clock have different origins. The lag of a launch is therefore
estimated as the difference between its device time and its host time, minus the smallest difference so far. The estimate
is correct if the device has been idle at least once.
"""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from time import perf_counter_ns
from typing import Any, Final, Protocol

from tensormeter.record.device.cuda_runtime import unseen_by_captures

__all__ = ["CudaEvents", "Events", "Mark", "Timeline"]

_DRIFT: Final = 20e-6
"""Maximum drift between the host clock and the device clock, in seconds per second."""


class Events(Protocol):
    """The timing events of one thread. Only this thread calls the methods."""

    def record(self) -> Any:
        """Record a new event on the current stream, or return None if no event can be recorded at the moment."""

    def asking(self) -> AbstractContextManager[None]:
        """Return a context manager that must be active during calls of `are_over` and `seconds`."""

    def are_over(self, events: Sequence[Any]) -> bool:
        """Return whether the device has reached all events. Return False if they cannot be queried now. Must not wait."""

    def seconds(self, first: Any, second: Any) -> float:
        """Return the time in seconds between two events that the device has reached."""

    def free(self, event: Any) -> None:
        """Release an event that is no longer needed."""


class CudaEvents:
    """Pooled events for one CUDA device: the device that is current when the first event is recorded."""

    def __init__(self) -> None:
        self._pool: list[Any] = []
        self._device: int | None = None

    def record(self) -> Any:
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized() or torch.cuda.is_current_stream_capturing():
            return None
        device = torch.cuda.current_device()
        if self._device is None:
            if not _has_context(device):  # an event would create a context, which takes hundreds of megabytes
                return None
            self._device = device
        if device != self._device:
            return None
        event = self._pool.pop() if self._pool else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def asking(self) -> AbstractContextManager[None]:
        return unseen_by_captures()  # `elapsed_time` also queries events

    def are_over(self, events: Sequence[Any]) -> bool:
        import torch

        # A query while this thread captures a graph would invalidate the capture.
        return not torch.cuda.is_current_stream_capturing() and all(event.query() for event in reversed(events))

    def seconds(self, first: Any, second: Any) -> float:
        return float(first.elapsed_time(second)) / 1e3

    def free(self, event: Any) -> None:
        self._pool.append(event)


def _has_context(device: int) -> bool:
    """Return whether the process has a CUDA context on a device. Return True if this version of torch cannot check."""
    import torch

    has_context = getattr(torch._C, "_cuda_hasPrimaryContext", None)
    return has_context is None or bool(has_context(device))


class Mark:
    """A moment in the program, with its time on the host and on the device.

    Attributes:
        host: Host time in nanoseconds, from `time.perf_counter_ns`.
        device: Device time in seconds; None until `Timeline.place` has set it.
        event: Timing event, or None.
    """

    __slots__ = ("device", "event", "host")

    def __init__(self, event: Any) -> None:
        self.host = perf_counter_ns()
        self.event = event
        self.device: float | None = None


class Timeline:
    """Computes the device times of marks, and tracks the smallest difference between the device clock and the host clock."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._last: Mark | None = None
        self._floor = 0.0

    def place(self, marks: Sequence[Mark]) -> None:
        """Set the device times of marks whose events the device has reached. Free all events except that of the last mark.

        If the device reports an error, nothing changes, and the caller may pass the same marks again.
        """
        differences = [
            0.0 if last is None else self._events.seconds(last.event, mark.event)
            for last, mark in zip((self._last, *marks), marks, strict=False)
        ]
        for mark, difference in zip(marks, differences, strict=True):
            host, last = mark.host / 1e9, self._last
            if last is None or last.device is None:
                mark.device = host + self._floor
            else:
                mark.device = last.device + difference
                self._events.free(last.event)
                self._floor += _DRIFT * (host - last.host / 1e9)
            self._floor = min(self._floor, mark.device - host)
            self._last = mark

    def lag(self, mark: Mark) -> float:
        """Return the time in seconds from when the host made the mark until the device reached it."""
        assert mark.device is not None
        return max(0.0, mark.device - mark.host / 1e9 - self._floor)

    def interrupt(self, marks: Sequence[Mark]) -> None:
        """Discard marks that did not get device times. Free their events and the event of the last mark with a device time.

        The timeline restarts at the next mark, and assumes that the device has no lag there.
        """
        for mark in marks if self._last is None else (self._last, *marks):
            self._events.free(mark.event)
        self._last = None
