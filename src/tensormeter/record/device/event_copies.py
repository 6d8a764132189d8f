"""Copies from devices whose stores into the ring cannot be seen there: Apple's (mps) and Intel's (xpu), and CUDA's where the
ring cannot be page-locked.

Two launches for each dtype: `torch.stack`, and a copy to the host that does not block. Then an event is recorded, and the
log calls that follow ask it whether it has happened. Until the next log call, or `finish`, the row is not delivered.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import TYPE_CHECKING, Final, Protocol

from tensormeter.record.device.cuda_runtime import unseen_by_captures
from tensormeter.record.device.gather import scalar
from tensormeter.record.device.pending_values import PendingValues

if TYPE_CHECKING:
    import torch

__all__ = ["EVENT_DEVICES", "Event", "EventCopies", "copy_to_host", "record_event"]

EVENT_DEVICES: Final = ("mps", "xpu")
"""Types of the devices that are always read like this."""


class Event(Protocol):
    """A point in a device's stream."""

    def query(self) -> bool:
        """Whether the device has got there. Does not wait."""
        ...


def record_event(device: "torch.device") -> Event:
    """An event at the end of a device's current stream."""
    import torch

    if device.type == "cuda":
        return _Unseen(torch.cuda.current_stream(device).record_event())
    if device.type == "xpu":
        event: Event = torch.xpu.current_stream(device).record_event()
        return event
    generic = torch.Event(device)
    generic.record()
    return generic


class _Unseen:
    """An event that can be asked while a CUDA graph is captured, on whatever thread."""

    def __init__(self, event: Event) -> None:
        self._event = event

    def query(self) -> bool:
        with unseen_by_captures():
            return self._event.query()


def copy_to_host(tensor: "torch.Tensor") -> "torch.Tensor":
    """Launch the copy of a tensor to the host. What is returned holds it once an event after the copy has happened."""
    import torch

    # Only a copy to page-locked memory is asynchronous, but on Apple's devices, which share theirs with the host.
    pin = tensor.device.type in ("cuda", "xpu")
    with unseen_by_captures() if tensor.is_cuda else nullcontext():  # page-locked memory may have to be allocated
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pin)
    return host.copy_(tensor, non_blocking=True)


class EventCopies:
    """Copies of values into words of the ring, by way of host tensors. Any thread may call."""

    def __init__(self, pending: PendingValues, record: Callable[["torch.device"], Event] = record_event) -> None:
        """
        Args:
            pending: Polls the events.
            record: Makes an event after a batch of copies.
        """
        self._pending = pending
        self._record = record

    def copy(self, word: int, tensors: Sequence["torch.Tensor"]) -> None:
        """Launch the copies of one-element tensors of one device. Never waits. Call it with grad mode off.

        Args:
            word: Index of the first word, which holds PENDING, as do the following.
            tensors: Equal dtypes are neighbours.
        """
        import torch

        device = tensors[0].device
        copies: list[torch.Tensor] = []
        for _, group in groupby(tensors, key=lambda tensor: tensor.dtype):
            copies.append(copy_to_host(torch.stack([scalar(tensor) for tensor in group])))
        event = self._record(device)

        def poll() -> list[float] | None:
            return [value for host in copies for value in host.double().tolist()] if event.query() else None

        self._pending.add(word, len(tensors), poll)

    def copy_gathered(self, word: int, values: "torch.Tensor") -> None:
        """Launch the copy of values that are floats in a tensor of shape (n,) already; otherwise as `copy`."""
        host, event = copy_to_host(values), self._record(values.device)

        def poll() -> list[float] | None:
            found: list[float] | None = host.tolist() if event.query() else None
            return found

        self._pending.add(word, len(values), poll)

    def copy_distributions(
        self, counts_at: int, counts: "torch.Tensor", statistics_at: int, statistics: "torch.Tensor"
    ) -> None:
        """Launch the copies of distributions that one device has counted; otherwise as `copy`.

        Args:
            counts_at: Index of the first word of the counts, which nobody reads before the statistics are there.
            counts: int32, contiguous, an even number of them.
            statistics_at: Index of the first word of the statistics, which holds PENDING, as do the following.
            statistics: Floats, contiguous.
        """
        host_counts, host_statistics = copy_to_host(counts), copy_to_host(statistics)
        event = self._record(counts.device)

        def poll() -> list[float] | None:
            if not event.query():
                return None
            self._pending.store(counts_at, host_counts.numpy().tobytes())
            found: list[float] = host_statistics.double().view(-1).tolist()
            return found

        self._pending.add(statistics_at, statistics.numel(), poll)
