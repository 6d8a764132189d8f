"""Device values: asynchronous copies, in stream order, into the page-locked ring.

The ring's pages are registered with CUDA once, so that a device can store into them while the processor goes on.
Logging K values of one device then takes two asynchronous operations on the caller's current stream: one kernel that
gathers the values as float64 (`torch._foreach_copy_`; one for each dtype), and one copy into the row.
The stream's order makes it a snapshot: what the program does to the tensors afterwards happens after the copy.
Completion is seen in memory, by whoever reads the row: the words hold `PENDING` until the device has stored over them.
No event is recorded or polled, and nothing waits.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tensormeter.record.values import Refused, scalar
from tensormeter.ring import LOST, RingFile

if TYPE_CHECKING:
    import torch

__all__ = ["DeviceCopies"]

_HOST_REGISTER_PORTABLE: Final = 1
"""cudaHostRegisterPortable: page-locked for every CUDA context, hence for every GPU of the process."""

_ALREADY_REGISTERED: Final = 712
"""cudaErrorHostMemoryAlreadyRegistered."""


class DeviceCopies:
    """Copies of device values into one ring. Constructed when the first device value is logged.

    Thread-safe as far as the ring's lanes are: each call touches its own row only.
    After a fork it must not be used in the child; CUDA cannot be either.
    """

    def __init__(self, ring: RingFile) -> None:
        self._path = ring.path
        self._words = ring.words
        self._buffer = ring.buffer
        self._host: torch.Tensor | None = None
        self._failure: str | None = None

    def prepare(self, tensor: "torch.Tensor") -> None:
        """Make sure that a tensor's value can be copied.

        Raises:
            Refused: Not on this device, not while a CUDA graph is captured, or page-locking failed.
        """
        import torch

        if tensor.device.type != "cuda":
            raise Refused(
                f"a tensor on {tensor.device}; only CUDA devices are read without waiting: log .item() instead"
            )
        if torch.cuda.is_current_stream_capturing():
            raise Refused(
                "a CUDA graph is being captured, and its replays would overwrite this row; log after the replay"
            )
        if self._host is None and self._failure is None:
            self._register()
        if self._failure is not None:
            raise Refused(self._failure)

    def copy(self, word: int, tensors: Sequence["torch.Tensor"]) -> None:
        """Launch the copies of one-element tensors into consecutive words of the ring. Never waits.

        Args:
            word: Index of the first word, which holds PENDING, as do the following.
            tensors: Of any devices that were prepared; equal devices must be neighbours.

        Raises:
            Exception: Whatever CUDA says; then call `give_up`.
        """
        import torch

        assert self._host is not None
        # Grad mode is switched by hand: `no_grad()` costs 2 us, this 0.4. A loss that requires grad must not put the ring
        # into the autograd graph.
        grad = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            start = 0
            for device, count in _runs(tensors):
                gathered = torch.empty(count, dtype=torch.float64, device=device)
                sources = [scalar(tensor) for tensor in tensors[start : start + count]]
                torch._foreach_copy_(list(gathered.unbind()), sources)
                self._host[word + start : word + start + count].copy_(gathered, non_blocking=True)
                start += count
        finally:
            torch._C._set_grad_enabled(grad)

    def copy_words(self, word: int, words: "torch.Tensor") -> None:
        """Launch the copy of a whole tensor on the current stream. Never waits.

        Args:
            word: Index of the first word.
            words: On a device that was prepared; contiguous, its elements of 8 bytes.

        Raises:
            Exception: Whatever CUDA says.
        """
        import torch

        assert self._host is not None
        flat = words.view(-1).view(torch.float64)
        self._host[word : word + len(flat)].copy_(flat, non_blocking=True)

    def give_up(self, word: int, number: int) -> None:
        """Say that the values of words that `copy` was to fill will not come."""
        for index in range(word, word + number):
            self._words[index] = LOST

    def _register(self) -> None:
        """Page-lock the whole ring once; it stays so until the process ends."""
        import torch

        if not _in_memory(self._path):  # registering pages of ext4 or xfs corrupts them under writeback
            self._failure = (
                f"the ring {self._path} is on a disk; put TENSORMETER_BUFFER_DIR on a tmpfs such as /dev/shm"
            )
            return
        with torch.inference_mode(mode=False):  # an inference tensor could not be written to later
            host = torch.frombuffer(self._buffer, dtype=torch.float64)
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        code = int(runtime.cudaHostRegister(host.data_ptr(), len(self._buffer), _HOST_REGISTER_PORTABLE))
        if code == 0:
            self._host = host
            return
        _clear_cuda_error()
        if code == _ALREADY_REGISTERED:  # by another thread that logged its first device value just now
            self._host = host
            return
        self._failure = (
            f"the ring could not be page-locked (cudaHostRegister: error {code}); "
            "put TENSORMETER_BUFFER_DIR on a tmpfs such as /dev/shm and raise `ulimit -l`"
        )


def _in_memory(path: Path) -> bool:
    """Whether a file is on a file system that lives in memory."""
    import psutil

    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    nearest = next((str(parent) for parent in path.resolve().parents if str(parent) in mounts), "")
    return mounts.get(nearest) in ("tmpfs", "ramfs", "hugetlbfs")


def _runs(tensors: Sequence["torch.Tensor"]) -> list[tuple["torch.device", int]]:
    runs: list[tuple[torch.device, int]] = []
    for tensor in tensors:
        if runs and runs[-1][0] == tensor.device:
            runs[-1] = (tensor.device, runs[-1][1] + 1)
        else:
            runs.append((tensor.device, 1))
    return runs


def _clear_cuda_error() -> None:
    """A failed registration leaves an error behind that the next unrelated CUDA call would report as its own."""
    for library in ("libcudart.so.13", "libcudart.so.12", "libcudart.so"):
        try:
            ctypes.CDLL(library).cudaGetLastError()
        except (OSError, AttributeError):
            continue
        return
