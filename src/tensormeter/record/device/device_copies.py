"""Asynchronous copies of device values into the page-locked ring, in stream order.

The ring's pages are registered with CUDA once, so that a device can store values in them while the CPU continues.
Values from a CUDA device then take one of these paths, on the caller's current stream:

- One launch: one kernel per dtype (and per 64 values, see `gather`) converts the values to float64 and stores them directly in
  the row. This path is used only if a trial at the device's first use has shown that it works (see `MappedRing`).
- Two launches: the same kernels gather the values in device memory, and one copy moves them into the row.

Later changes to a tensor come after the copy in stream order, so the row is a snapshot.
Each word of the row holds `PENDING` until the device overwrites it with a value. The reader can therefore detect that a row is
complete just by reading memory. No event is recorded or polled, and nothing waits.

Values from Apple and Intel devices are copied with events (`EventCopies`). So are values from CUDA devices if the ring cannot
be page-locked, for example because it is on a disk. Log calls poll all other values that become available later, such as JAX
arrays (`PendingValues`).
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from tensormeter.record.device.event_copies import EVENT_DEVICES, EventCopies
from tensormeter.record.device.gather import NoGradients, dtype_order, gather
from tensormeter.record.device.host_mapped import MappedRing
from tensormeter.record.device.page_locking import is_in_memory, page_lock, retire
from tensormeter.record.device.pending_values import PendingValues
from tensormeter.record.values.outcomes import Deferred, DeviceValue, Refused
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import LOST, PENDING

if TYPE_CHECKING:
    import torch

__all__ = ["DeviceCopies", "place"]


def place(value: DeviceValue | Deferred) -> tuple[int, int]:
    """Return a sort key that orders a row's values for `DeviceCopies.copy`: first by device, then by dtype."""
    if isinstance(value, Deferred):
        return -2, 0
    return value.tensor.get_device(), dtype_order(value.tensor)  # a process uses only one device type


class DeviceCopies:
    """Copies device values into one ring.

    Threads may use it at the same time if they write to different lanes, because each call changes only its own row.
    A forked child process must not use it. Such a process cannot use CUDA either.

    Attributes:
        pending: Pending values that log calls must poll, because devices do not store these values themselves.
    """

    def __init__(
        self,
        ring: RingFile,
        on_failure: Callable[[Exception], None] = lambda error: None,
        on_pending: Callable[[], None] = lambda: None,
        on_detour: Callable[[str], None] = lambda why: None,
        *,
        one_launch: bool = True,
    ) -> None:
        """
        Args:
            ring: Ring that this process has created.
            on_failure: Callback that receives the error when a polled value cannot be delivered.
            on_pending: Callback that is called whenever a value is added to `pending`.
            on_detour: Callback that receives the reason if values from a CUDA device must be copied with events.
            one_launch: Whether devices may store values directly in the ring if a trial shows that this works.
        """
        self.pending = PendingValues(ring, on_failure, on_pending)
        self._events = EventCopies(self.pending)
        self._one_launch = one_launch
        self._path = ring.path
        self._words = ring.words
        self._buffer = ring.buffer
        self._host: torch.Tensor | None = None
        self._failure: str | None = None
        self._gave_up = False
        self._on_detour = on_detour
        self._detours: set[torch.device] = set()
        self._mapped: dict[torch.device, MappedRing] = {}
        self._preparing = threading.RLock()

    @property
    def paths(self) -> dict[str, str]:
        """Copy path for each CUDA device in use: `one launch`, `two launches (REASON)` or `events (REASON)`."""
        detours = {str(device): f"events ({self._failure})" for device in self._detours.copy()}
        return detours | {
            str(device): "one launch" if mapped.view is not None else f"two launches (trial: {mapped.verdict})"
            for device, mapped in self._mapped.copy().items()
        }

    def prepare(self, tensor: "torch.Tensor") -> None:
        """Check that a tensor's value can be copied, and prepare the tensor's device when it is first used.

        Raises:
            Refused: Values cannot be copied from this device, or a CUDA graph is being captured.
        """
        import torch

        device = tensor.device
        if not tensor.is_cuda:
            if device.type in EVENT_DEVICES:
                return
            raise Refused(
                f"the tensor is on {device}; only values on CUDA, MPS and XPU devices can be read without waiting, so "
                "log .item()"
            )
        if torch.cuda.is_current_stream_capturing():
            raise Refused(
                "a CUDA graph is being captured, and its replays would overwrite this row; "
                "log after the replay, or inside the graph with tensormeter.deferred_log"
            )
        if device not in self._mapped and device not in self._detours:
            with self._preparing:
                self._begin(device)

    def copy(self, word: int, values: Sequence[DeviceValue | Deferred]) -> None:
        """Launch copies of values into consecutive words of the ring. Never waits.

        Args:
            word: Index of the first word. All of the words must hold PENDING.
            values: Tensors on prepared devices and deferred values, sorted by `place`.

        Raises:
            Exception: CUDA reported an error. The caller must then call `give_up`.
        """
        for device, group in groupby(values, key=_device):
            members = list(group)
            if device is None:  # deferred values, which do not need torch
                for index, value in enumerate(members, word):
                    if isinstance(value, Deferred):
                        self.pending.add(index, 1, _as_sequence(value.poll))
            else:
                self.copy_tensors(word, device, [value.tensor for value in members if isinstance(value, DeviceValue)])
            word += len(members)

    def copy_distributions(
        self, counts_at: int, statistics_at: int, counted: Sequence[tuple["torch.Tensor", "torch.Tensor"]]
    ) -> None:
        """Launch copies of distributions on the current streams. All counts are copied before all statistics. Never waits.

        Args:
            counts_at: Index of the first word for counts.
            statistics_at: Index of the first word for statistics. All of these words must hold PENDING.
            counted: Counts and statistics on prepared devices. Each tensor must be contiguous, and its size must be a multiple
                of 8 bytes.

        Raises:
            Exception: A device reported an error.
        """
        statistics_to_copy = []
        for counts, statistics in counted:
            if self._by_events(counts.device):
                self._events.copy_distributions(counts_at, counts, statistics_at, statistics)
            else:
                self.copy_words(counts_at, counts)
                statistics_to_copy.append((statistics_at, statistics))
            counts_at += counts.numel() * counts.element_size() // 8
            statistics_at += statistics.numel()
        for word, statistics in statistics_to_copy:
            self.copy_words(word, statistics)

    def copy_words(self, word: int, words: "torch.Tensor") -> None:
        """Launch a copy of a whole tensor from a CUDA device to consecutive words of the ring. Never waits."""
        import torch

        assert self._host is not None
        flat = words.view(-1).view(torch.float64)
        self._host[word : word + len(flat)].copy_(flat, non_blocking=True)

    def give_up(self, word: int, number: int) -> None:
        """Mark values as lost if they have not arrived. Call this method after `copy` has failed."""
        self._gave_up = True
        for index in range(word, word + number):
            if self._words[index] == PENDING:
                self._words[index] = LOST

    def close(self) -> None:
        """Stop copying. Copies that were already launched still complete. `unlock_retired` can release the memory later."""
        if self._host is not None:
            retire(self._host, self._is_quiet)
        for mapped in self._mapped.values():
            mapped.retire()

    def _is_quiet(self) -> bool:
        """Return whether the values of all launched copies have arrived in the ring."""
        import torch

        assert self._host is not None
        return not self._gave_up and not bool((self._host.view(torch.int64) == PENDING).any())

    def is_settled(self, values: Iterable[object]) -> bool:
        """Return whether all values are plain tensors on the same CUDA device, and the trial on this device has ended."""
        if not self._mapped:  # torch may not be installed
            return False
        import torch

        devices = {value.device if type(value) is torch.Tensor else None for value in values}
        mapped = self._mapped.get(device) if len(devices) == 1 and (device := devices.pop()) is not None else None
        return mapped is not None and mapped.verdict != "running"

    def copy_tensors(self, word: int, device: "torch.device", tensors: Sequence["torch.Tensor"]) -> None:
        """Launch copies of tensors from one device, like `copy`. Tensors of the same dtype must be adjacent."""
        import torch

        with NoGradients():  # a loss that requires grad must not add the ring to its autograd graph
            mapped = self._mapped.get(device)
            if mapped is None and device.type in EVENT_DEVICES:
                self._events.copy(word, tensors)
                return
            if mapped is not None:
                mapped.poll()
                if mapped.view is not None:
                    gather(tensors, mapped.view, word)
                    return
            gathered = torch.empty(len(tensors), dtype=torch.float64, device=device)
            gather(tensors, gathered)
            if self._host is None:
                self._events.copy_gathered(word, gathered)
            else:
                self._host[word : word + len(tensors)].copy_(gathered, non_blocking=True)

    def _by_events(self, device: "torch.device") -> bool:
        return device not in self._mapped and (device.type in EVENT_DEVICES or self._host is None)

    def _begin(self, device: "torch.device") -> None:
        """Page-lock the ring if this is the first CUDA device, and start the trial on this device."""
        if self._host is None and self._failure is None:
            self._page_lock(device)
        if self._failure is not None:
            self._detours.add(device)
            self._on_detour(self._failure)
        elif self._host is not None and device not in self._mapped:
            self._mapped[device] = MappedRing(self._host, device, try_it=self._one_launch)

    def _page_lock(self, device: "torch.device") -> None:
        """Page-lock the whole ring."""
        import torch

        remedy = "put TENSORMETER_BUFFER_DIR on a tmpfs such as /dev/shm"
        if not is_in_memory(self._path):
            self._failure = f"the ring {self._path} is on a disk; {remedy}"
            return
        with torch.inference_mode(mode=False):  # an inference tensor could not be written to later
            host = torch.frombuffer(self._buffer, dtype=torch.float64)
        try:
            page_lock(host, device)
        except Refused as refusal:
            self._failure = f"the ring's {refusal}; {remedy}, and raise `ulimit -l`"
            return
        self._host = host


def _device(value: DeviceValue | Deferred) -> "torch.device | None":
    return value.tensor.device if isinstance(value, DeviceValue) else None


def _as_sequence(poll: Callable[[], float | None]) -> Callable[[], Sequence[float] | None]:
    def polled() -> Sequence[float] | None:
        value = poll()
        return None if value is None else (value,)

    return polled
