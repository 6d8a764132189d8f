"""Recording from inside compiled functions and CUDA graphs.

There, no Python runs: what is recorded must be written by the graph itself. So the device has a small ring of its own, and a
count of the rows written to it, which is its cursor as well. A write is plain tensor operations on the two, which
`torch.compile` puts into its graph, and which a captured CUDA graph repeats with each replay. Now and then a log call outside
of the graph copies ring and count to the host, in stream order and without waiting, and records what is new in it.
"""

import mmap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tensormeter.errors import UsageError
from tensormeter.record.device.event_copies import copy_to_host, record_event
from tensormeter.record.device.gather import accumulator_dtype
from tensormeter.record.device.page_locking import page_lock, retire
from tensormeter.record.dynamo import trace_into
from tensormeter.record.recorder import Recorder
from tensormeter.record.values.outcomes import Refused
from tensormeter.ring.format import Drop

if TYPE_CHECKING:
    import torch

__all__ = ["DeferredLog"]

_INTERVAL: Final = 0.25
"""Seconds between the copies that log calls begin."""

_TIMEOUT: Final = 5.0
"""Seconds that the end of the run waits for the last copy."""

_NOT_COME: Final = -1


class DeferredLog:
    """Rows of fixed metrics, written inside compiled functions and CUDA graphs. Made by `tensormeter.deferred_log`.

    `write` belongs into the graph, everything else outside of it. All of it is for the thread that made the object, and the
    copies run on that thread's current stream, so the writes must come before them in its order, as for any other use of
    what a graph has computed.
    """

    def __init__(
        self,
        recorder: Recorder | None,
        names: Sequence[str],
        *,
        capacity: int,
        device: "torch.device | str | None",
        first_step: int,
    ) -> None:
        """
        Args:
            recorder: None to record nothing.
            names: See `tensormeter.deferred_log`, as for the rest.
            capacity: Rows.
            device: Where the values are.
            first_step: Step of the first row.
        """
        import torch
        import torch._dynamo

        if isinstance(names, str) or not names or len(set(names)) != len(names):
            raise UsageError(f"deferred_log: expected different names of metrics, got {names!r}")
        if type(capacity) is not int or capacity < 1:
            raise UsageError(f"deferred_log: expected a capacity of at least 1 row, got {capacity!r}")
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._names = tuple(names)
        self._capacity = capacity
        self._recorder = recorder
        self._first_step = first_step
        self._owner = threading.get_ident()
        self._collecting = threading.Lock()
        self._recorded = 0  # rows of the device's count that have been recorded or counted as lost
        self._copying: _Copy | None = None
        self._next_copy = 0.0
        with torch.inference_mode(mode=False):
            self._count = torch.zeros(1, dtype=torch.int64, device=device)
            shape = (capacity, len(names))
            self._rows = torch.zeros(shape, dtype=accumulator_dtype(self._count.device), device=self._count.device)
        for tensor in (self._count, self._rows):
            torch._dynamo.mark_static_address(tensor)
        self._copies = _copies(self._rows, self._count)
        if recorder is not None:
            recorder.attend(self._collect_in_passing, at_close=self._finish)

    def write(self, values: "Mapping[str, torch.Tensor]") -> None:
        """Record one row. May be called inside a compiled function, and while a CUDA graph is captured.

        Nothing is read on the host, and nothing waits. A graph that is captured repeats the write with each replay.

        Args:
            values: For each of the names a tensor with one element, on the device.

        Raises:
            UsageError: Other names, or values that are no tensors.
        """
        import torch

        if len(values) != len(self._names):
            raise UsageError("deferred_log: write() expects a value for each of its names, and no others")
        row = []
        for name in self._names:
            value = values.get(name)
            if not isinstance(value, torch.Tensor):
                raise UsageError("deferred_log: write() expects a tensor for each of its names")
            row.append(value.detach().reshape(()).to(self._rows.dtype))
        self._rows.index_copy_(0, self._count % self._capacity, torch.stack(row).unsqueeze(0))
        self._count.add_(1)

    def flush(self) -> None:
        """Begin to fetch what has been written so far, and record what has come. Never waits.

        Log calls do so by themselves, four times a second, and the end of the run does it a last time.
        Does nothing while a CUDA graph is captured.
        """
        self._collect(at_once=True)

    def _collect_in_passing(self) -> None:
        self._collect(at_once=False)

    def _collect(self, *, at_once: bool) -> None:
        if self._recorder is None or threading.get_ident() != self._owner:
            return
        if not self._collecting.acquire(blocking=False):  # a log call of ours, below, or of a signal handler
            return
        try:
            if self._capturing():
                return
            self._record_what_has_come()
            if self._copying is None and (at_once or time.monotonic() >= self._next_copy):
                self._next_copy = time.monotonic() + _INTERVAL
                self._copying = self._copies.begin()
                self._record_what_has_come()
        except Exception as error:  # of a device: the program will meet it again in its own calls
            self._copying = None
            self._recorder.count_lost(Drop.DEVICE_UNFINISHED, 1, "deferred_log: rows cannot be fetched: %s", error)
        finally:
            self._collecting.release()

    def _finish(self) -> None:
        """Fetch the rest, and wait for it a little; nothing is fetched any more afterwards."""
        deadline, pause = time.monotonic() + _TIMEOUT, threading.Event()
        self._owner = threading.get_ident()
        for _ in range(2):  # the copy that is under way, and one that has everything
            self._collect(at_once=True)
            while self._copying is not None and time.monotonic() < deadline:
                pause.wait(0.001)
                self._collect(at_once=False)
        if self._copying is not None and self._recorder is not None:
            self._recorder.count_lost(Drop.DEVICE_UNFINISHED, 1, "deferred_log: the device did not finish in time")
        self._recorder = None
        self._copies.close()

    def _record_what_has_come(self) -> None:
        if self._copying is None:
            return
        state = self._copying.read()
        if state is None:
            return
        self._copying = None
        count, rows = state
        assert self._recorder is not None
        fresh = min(count - self._recorded, self._capacity)
        lost = count - self._recorded - fresh
        if lost:
            self._recorder.count_lost(
                Drop.RING_FULL,
                lost,
                "deferred_log: rows were overwritten before they were fetched: raise its capacity, or call flush()",
            )
        for number in range(count - fresh, count):
            values = dict(zip(self._names, rows(number % self._capacity), strict=True))
            self._recorder.log(values, self._first_step + number)
        self._recorded = count

    def _capturing(self) -> bool:
        import torch

        return self._count.is_cuda and torch.cuda.is_current_stream_capturing()


trace_into(DeferredLog.write)


class _Copy(NamedTuple):
    """A copy that is under way.

    Attributes:
        read: Returns the count and a function from a row's index to its values, or None as long as they have not come.
    """

    read: Callable[[], "tuple[int, Callable[[int], list[float]]] | None"]


def _copies(rows: "torch.Tensor", count: "torch.Tensor") -> "_Copies":
    if count.is_cuda:
        with suppress(Refused):
            return _Locked(rows, count)
    return _Copies(rows, count)


class _Copies:
    """Copies of a device's ring, by way of events; only one is under way at a time."""

    def __init__(self, rows: "torch.Tensor", count: "torch.Tensor") -> None:
        self._device = (rows, count)

    def begin(self) -> _Copy:
        rows, count = self._device
        if rows.device.type == "cpu":
            return _Copy(lambda: (int(count.item()), lambda index: _floats(rows[index])))
        host_rows, host_count = copy_to_host(rows), copy_to_host(count)
        event = record_event(rows.device)
        return _Copy(
            lambda: (int(host_count.item()), lambda index: _floats(host_rows[index])) if event.query() else None
        )

    def close(self) -> None:
        """No copy will begin any more."""


class _Locked(_Copies):
    """Copies into page-locked memory. That the count has come is seen there; it is copied last. No event is needed, which
    would disturb a CUDA graph's capture in another thread.
    """

    def __init__(self, rows: "torch.Tensor", count: "torch.Tensor") -> None:
        """
        Raises:
            Refused: CUDA does not let memory be page-locked.
        """
        import torch

        super().__init__(rows, count)
        self._memory = mmap.mmap(-1, rows.numel() * 8 + 8)
        with torch.inference_mode(mode=False):
            self._host_rows = torch.frombuffer(self._memory, dtype=torch.float64, count=rows.numel()).view(rows.shape)
            self._host_count = torch.frombuffer(self._memory, dtype=torch.int64, offset=rows.numel() * 8)
        self._locked = torch.frombuffer(self._memory, dtype=torch.uint8)
        page_lock(self._locked, rows.device)
        self._words: Any = memoryview(self._memory).cast("q")

    def begin(self) -> _Copy:
        import torch

        rows, count = self._device
        self._words[-1] = _NOT_COME
        with torch.no_grad():
            self._host_rows.copy_(rows, non_blocking=True)
            self._host_count.copy_(count, non_blocking=True)
        seen = False

        def read() -> tuple[int, Callable[[int], list[float]]] | None:
            nonlocal seen
            # The rows are read by another call than the count: on arm64 their order is not certain otherwise.
            if not seen:
                seen = self._words[-1] != _NOT_COME
                return None
            return self._words[-1], lambda index: _floats(self._host_rows[index])

        return _Copy(read)

    def close(self) -> None:
        retire(self._locked, lambda: self._words[-1] != _NOT_COME)


def _floats(row: "torch.Tensor") -> list[float]:
    values: list[float] = row.double().tolist()
    return values
