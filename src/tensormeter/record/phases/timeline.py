"""When the device was where the host told it to be: timing events, and their place on the host's clock.

Device times come from differences of consecutive events, added up in float64, because CUDA gives them as float32
milliseconds. They have no origin in common with the host's clock. So the lag of a launch is what the device is behind the
host, less the smallest such distance seen: an estimate, which is right if the device has been idle once.
"""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from time import perf_counter_ns
from typing import Any, Final, Protocol

from tensormeter.record.device.cuda_runtime import unseen_by_captures

__all__ = ["CudaEvents", "Events", "Mark", "Timeline"]

_DRIFT: Final = 20e-6
"""Seconds a second by which the clocks of host and device may drift apart."""


class Events(Protocol):
    """A thread's timing events. Called by that thread only."""

    def record(self) -> Any:
        """A new event at the current place of the current stream, or None if there can be none."""

    def asking(self) -> AbstractContextManager[None]:
        """A context for calls of `are_over` and `seconds`."""

    def are_over(self, events: Sequence[Any]) -> bool:
        """Whether all have been reached. Must not wait; False if it cannot be asked now."""

    def seconds(self, first: Any, second: Any) -> float:
        """From one event that is over to another."""

    def free(self, event: Any) -> None:
        """The event will not be used any more."""


class CudaEvents:
    """Pooled events of the device that is current when the first is recorded."""

    def __init__(self) -> None:
        self._pool: list[Any] = []
        self._device: int | None = None

    def record(self) -> Any:
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized() or torch.cuda.is_current_stream_capturing():
            return None
        device = torch.cuda.current_device()
        if self._device is None:
            if not _has_context(device):  # an event would make one, which takes hundreds of megabytes
                return None
            self._device = device
        if device != self._device:
            return None
        event = self._pool.pop() if self._pool else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def asking(self) -> AbstractContextManager[None]:
        return unseen_by_captures()  # `elapsed_time` queries as well

    def are_over(self, events: Sequence[Any]) -> bool:
        import torch

        # A query during a capture on this thread would invalidate it.
        return not torch.cuda.is_current_stream_capturing() and all(event.query() for event in reversed(events))

    def seconds(self, first: Any, second: Any) -> float:
        return float(first.elapsed_time(second)) / 1e3

    def free(self, event: Any) -> None:
        self._pool.append(event)


def _has_context(device: int) -> bool:
    """Whether the process uses a device, and not only another one; True where torch does not say."""
    import torch

    asked = getattr(torch._C, "_cuda_hasPrimaryContext", None)
    return asked is None or bool(asked(device))


class Mark:
    """A moment: on the host in nanoseconds, and on the device, in seconds, once that is known."""

    __slots__ = ("device", "event", "host")

    def __init__(self, event: Any) -> None:
        self.host = perf_counter_ns()
        self.event = event
        self.device: float | None = None


class Timeline:
    """The device's time of marks, and the smallest distance between the two clocks."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._last: Mark | None = None
        self._floor = 0.0

    def place(self, marks: Sequence[Mark]) -> None:
        """Give marks, whose events are over, their device's time; their events but the last are free then."""
        for mark in marks:
            host, last = mark.host / 1e9, self._last
            if last is None or last.device is None:
                mark.device = host + self._floor
            else:
                mark.device = last.device + self._events.seconds(last.event, mark.event)
                self._events.free(last.event)
                self._floor += _DRIFT * (host - last.host / 1e9)
            self._floor = min(self._floor, mark.device - host)
            self._last = mark

    def lag(self, mark: Mark) -> float:
        """Seconds from the host's call to the device's coming there."""
        assert mark.device is not None
        return max(0.0, mark.device - mark.host / 1e9 - self._floor)

    def interrupt(self, marks: Sequence[Mark]) -> None:
        """Give up marks that cannot be placed; the next one begins anew."""
        for mark in marks if self._last is None else (self._last, *marks):
            self._events.free(mark.event)
        self._last = None
