"""Recording of rows from inside compiled functions and CUDA graphs.

A compiled or captured graph runs no Python code, so the graph itself must write the rows. The device holds a small ring buffer
of rows, and a count of the rows written so far. The count also determines where the next row goes. A write consists of plain
tensor operations on the ring buffer and the count. `torch.compile` includes these operations in its graph, and a captured CUDA
graph repeats them on each replay. Up to four times a second, a log call outside the graph starts to copy the ring buffer and
the count to the host, in stream order and without waiting. Once a copy is complete, a log call records the new rows.
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
"""Minimum time in seconds between two copies that log calls start."""

_TIMEOUT: Final = 5.0
"""Maximum time in seconds to wait for the last copies at the end of the run."""

_NOT_COPIED: Final = -1
"""Placeholder in host memory for a row count that has not been copied from the device yet."""


class DeferredLog:
    """Records rows for a fixed set of metrics inside compiled functions and CUDA graphs.

    `tensormeter.deferred_log` creates the object, and only the thread that created it may use it. Call `write` inside the
    graph, and `flush` outside of it. Copies to the host run on the thread's current stream. The writes must come before these
    copies in stream order, as with any other use of a graph's results.
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
            recorder: Recorder of this process, or None to record nothing.
            names: Metric names, without duplicates.
            capacity: Number of rows that the ring buffer on the device can hold, at least 1.
            device: Device of the values. None selects CUDA if it is available, otherwise the CPU.
            first_step: Step of the first row.

        Raises:
            UsageError: `names` or `capacity` has an invalid type or value.
        """
        import torch
        import torch._dynamo

        if isinstance(names, str) or not names or len(set(names)) != len(names):
            raise UsageError(f"deferred_log: expected distinct metric names, got {names!r}")
        if type(capacity) is not int or capacity < 1:
            raise UsageError(f"deferred_log: capacity: expected at least 1 row, got {capacity!r}")
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._names = tuple(names)
        self._capacity = capacity
        self._recorder = recorder
        self._first_step = first_step
        self._owner = threading.get_ident()
        self._collecting = threading.Lock()
        self._recorded = 0  # number of rows that have been recorded or counted as lost
        self._is_read = False  # whether a copy has been read since `_finish` last set this to False
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
            recorder.add_periodic_task(self._collect_if_due, at_close=self._finish)

    def write(self, values: "Mapping[str, torch.Tensor]") -> None:
        """Record one row. Compiled functions may call this method, and it may be called while a CUDA graph is being captured.

        The method never waits for the device. A captured graph repeats the write on each replay.

        Args:
            values: One-element tensors on the device, one for each name that was passed to the constructor.

        Raises:
            UsageError: The names differ from those passed to the constructor, or a value is not a tensor.
        """
        import torch

        if len(values) != len(self._names):
            raise UsageError("deferred_log: write() expects exactly one value for each name")
        row = []
        for name in self._names:
            value = values.get(name)
            if not isinstance(value, torch.Tensor):
                raise UsageError("deferred_log: write() expects a tensor for each name")
            row.append(value.detach().reshape(()).to(self._rows.dtype))
        self._rows.index_copy_(0, self._count % self._capacity, torch.stack(row).unsqueeze(0))
        self._count.add_(1)

    def flush(self) -> None:
        """Start to copy the rows written so far, and record the rows that have already been copied. Never waits.

        Log calls also copy and record rows, up to four times a second. The end of the run records all remaining rows.
        While a CUDA graph is being captured, this method does nothing.
        """
        self._collect(at_once=True)

    def _collect_if_due(self) -> None:
        self._collect(at_once=False)

    def _collect(self, *, at_once: bool) -> None:
        recorder = self._recorder  # a signal handler may finish the run meanwhile
        if recorder is None or threading.get_ident() != self._owner:
            return
        if not self._collecting.acquire(blocking=False):  # `recorder.log` below, or a signal handler, called this again
            return
        try:
            if self._capturing():
                return
            self._record_copied_rows(recorder)
            is_due = at_once or time.monotonic() >= self._next_copy
            if self._copying is None and is_due and self._recorder is not None:
                self._next_copy = time.monotonic() + _INTERVAL
                self._copying = self._copies.begin()
                self._record_copied_rows(recorder)
        except Exception as error:  # a device error, which the program's own CUDA calls will also raise
            self._copying = None
            # The next copy may still succeed, so `_finish` counts the loss.
            if self._recorder is not None:
                recorder.count_lost(
                    Drop.DEVICE_UNFINISHED, 0, "deferred_log: cannot copy rows from the device: %s", error
                )
        finally:
            self._collecting.release()

    def _finish(self) -> None:
        """Copy and record the remaining rows at the end of the run. Waits up to 5 seconds. No copy may start afterwards.

        If the copy fails, the number of lost rows is unknown, because only the device stores it. One row is counted as lost.
        The same happens, without a wait, in a signal handler that has interrupted a copy on this thread.
        """
        deadline, pause = time.monotonic() + _TIMEOUT, threading.Event()
        is_interrupted = self._collecting.locked() and self._owner == threading.get_ident()
        self._owner = threading.get_ident()
        for _ in range(0 if is_interrupted else 2):  # first finish the copy in progress, then copy all remaining rows
            self._is_read = False
            self._collect(at_once=True)
            while self._copying is not None and time.monotonic() < deadline:
                pause.wait(0.001)
                self._collect(at_once=False)
        if (is_interrupted or self._copying is not None or not self._is_read) and self._recorder is not None:
            self._recorder.count_lost(
                Drop.DEVICE_UNFINISHED,
                len(self._names),
                "deferred_log: lost the last rows, because they could not be copied from the device within 5 s; call "
                "torch.cuda.synchronize() before run.finish()",
            )
        self._recorder = None
        self._copies.close()

    def _record_copied_rows(self, recorder: Recorder) -> None:
        if self._copying is None:
            return
        contents = self._copying.read()
        if contents is None:
            return
        self._copying = None
        self._is_read = True
        count, rows = contents
        available = min(count - self._recorded, self._capacity)
        lost = count - self._recorded - available
        if lost:
            recorder.count_lost(
                Drop.RING_FULL,
                lost * len(self._names),
                "deferred_log: rows were overwritten before they were copied from the device; raise `capacity`, or "
                "call flush() more often",
            )
        for number in range(count - available, count):
            values = dict(zip(self._names, rows(number % self._capacity), strict=True))
            recorder.log(values, self._first_step + number)
        self._recorded = count

    def _capturing(self) -> bool:
        import torch

        return self._count.is_cuda and torch.cuda.is_current_stream_capturing()


trace_into(DeferredLog.write)


class _Copy(NamedTuple):
    """A copy in progress.

    Attributes:
        read: Function that returns None until the copy is complete. Then it returns the row count, and a function that returns
            the values of the row at an index.
    """

    read: Callable[[], "tuple[int, Callable[[int], list[float]]] | None"]


def _copies(rows: "torch.Tensor", count: "torch.Tensor") -> "_Copies":
    if count.is_cuda:
        with suppress(Refused):
            return _Locked(rows, count)
    return _Copies(rows, count)


class _Copies:
    """Copies the ring buffer from the device to the host, one copy at a time. An event signals that a copy is complete.

    On the CPU, the ring buffer is read in place.
    """

    def __init__(self, rows: "torch.Tensor", count: "torch.Tensor") -> None:
        self._device = (rows, count)

    def begin(self) -> _Copy:
        """Launch a copy on the current stream. Never waits."""
        rows, count = self._device
        if rows.device.type == "cpu":
            return _Copy(lambda: (int(count.item()), lambda index: _floats(rows[index])))
        host_rows, host_count = copy_to_host(rows), copy_to_host(count)
        event = record_event(rows.device)
        return _Copy(
            lambda: (int(host_count.item()), lambda index: _floats(host_rows[index])) if event.query() else None
        )

    def close(self) -> None:
        """Release the host memory. No copy may begin afterwards."""


class _Locked(_Copies):
    """Copies the ring buffer from the device to page-locked memory. The count is copied last.

    A copy is complete once the count has arrived. No event is used, because an event would disturb a CUDA graph capture in
    another thread.
    """

    def __init__(self, rows: "torch.Tensor", count: "torch.Tensor") -> None:
        """
        Raises:
            Refused: CUDA cannot page-lock the memory.
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
        self._words[-1] = _NOT_COPIED
        with torch.no_grad():
            self._host_rows.copy_(rows, non_blocking=True)
            self._host_count.copy_(count, non_blocking=True)
        has_arrived = False

        def read() -> tuple[int, Callable[[int], list[float]]] | None:
            nonlocal has_arrived
            # One call detects the count, and the next call reads the rows, because arm64 might reorder reads within a call.
            if not has_arrived:
                has_arrived = self._words[-1] != _NOT_COPIED
                return None
            return self._words[-1], lambda index: _floats(self._host_rows[index])

        return _Copy(read)

    def close(self) -> None:
        retire(self._locked, lambda: self._words[-1] != _NOT_COPIED)


def _floats(row: "torch.Tensor") -> list[float]:
    values: list[float] = row.double().tolist()
    return values
