"""Copies from devices that cannot store values in the ring themselves.

These are Apple devices (mps), Intel devices (xpu), and CUDA devices if the ring cannot be page-locked. Each dtype needs two
launches: `torch.stack` and a non-blocking copy to the host. An event is recorded after the copies, and later log calls query
it. The row can therefore be delivered only after a later log call or `finish`.
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
"""Device types whose values are always copied with events."""


class Event(Protocol):
    """A point in a device's stream."""

    def query(self) -> bool:
        """Return whether the device has reached this point. Never waits."""
        ...


def record_event(device: "torch.device") -> Event:
    """Record an event on a device's current stream, after all work queued so far."""
    import torch

    if device.type == "cuda":
        return _CaptureSafeEvent(torch.cuda.current_stream(device).record_event())
    if device.type == "xpu":
        event: Event = torch.xpu.current_stream(device).record_event()
        return event
    generic = torch.Event(device)
    generic.record()
    return generic


class _CaptureSafeEvent:
    """An event that any thread may query, even during a CUDA graph capture."""

    def __init__(self, event: Event) -> None:
        self._event = event

    def query(self) -> bool:
        with unseen_by_captures():
            return self._event.query()


def copy_to_host(tensor: "torch.Tensor") -> "torch.Tensor":
    """Launch a copy of a tensor to the host. Never waits.

    Returns:
        Tensor on the host. Its values are valid once the device has reached an event that was recorded after the copy.
    """
    import torch

    # Only copies to page-locked memory are asynchronous. Apple devices share the host's memory, which need not be page-locked.
    pin = tensor.device.type in ("cuda", "xpu")
    with unseen_by_captures() if tensor.is_cuda else nullcontext():  # torch may have to allocate page-locked memory
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pin)
    return host.copy_(tensor, non_blocking=True)


class EventCopies:
    """Copies values to host tensors, and from there to words of the ring. Thread-safe."""

    def __init__(self, pending: PendingValues, record: Callable[["torch.device"], Event] = record_event) -> None:
        """
        Args:
            pending: Pending values of the ring. Polling them also queries the events.
            record: Function that records an event on a device's current stream, after a batch of copies.
        """
        self._pending = pending
        self._record = record

    def copy(self, word: int, tensors: Sequence["torch.Tensor"]) -> None:
        """Launch copies of one-element tensors from one device. Never waits. Grad mode must be off.

        Args:
            word: Index of the first word. All of the words must hold PENDING.
            tensors: One-element tensors. Tensors of the same dtype must be adjacent.
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
        """Launch a copy of a float tensor of shape (n,), like `copy`."""
        host, event = copy_to_host(values), self._record(values.device)

        def poll() -> list[float] | None:
            numbers: list[float] | None = host.tolist() if event.query() else None
            return numbers

        self._pending.add(word, len(values), poll)

    def copy_distributions(
        self, counts_at: int, counts: "torch.Tensor", statistics_at: int, statistics: "torch.Tensor"
    ) -> None:
        """Launch copies of distributions that one device has counted, like `copy`.

        Args:
            counts_at: Index of the first word for counts. Readers do not use the counts until the statistics have arrived.
            counts: Contiguous int32 tensor with an even number of elements.
            statistics_at: Index of the first word for statistics. All of these words must hold PENDING.
            statistics: Contiguous tensor of floats.
        """
        host_counts, host_statistics = copy_to_host(counts), copy_to_host(statistics)
        event = self._record(counts.device)

        def poll() -> list[float] | None:
            if not event.query():
                return None
            self._pending.store(counts_at, host_counts.numpy().tobytes())
            numbers: list[float] = host_statistics.double().view(-1).tolist()
            return numbers

        self._pending.add(statistics_at, statistics.numel(), poll)
