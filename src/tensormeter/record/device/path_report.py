"""A check for `tensormeter doctor`: how device values reach the ring on this machine."""

import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tensormeter.errors import TensormeterError
from tensormeter.record.device.device_copies import DeviceCopies, place
from tensormeter.record.values.outcomes import DeviceValue
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import PENDING

if TYPE_CHECKING:
    import torch

__all__ = ["DevicePath", "device_path_report"]

_VALUES: Final = {"float32": 1.5, "bfloat16": -2.0, "int64": 7.0, "bool": 1.0, "float8_e4m3fn": 0.25, "uint16": 40000.0}


@dataclass(frozen=True)
class DevicePath:
    """The result of the check for one device.

    Attributes:
        device: Name of the device, such as `cuda:0`.
        name: Product name of the device.
        path: Path that values take, as in `DeviceCopies.paths`. If `works` is False, a description of the failure.
        works: Whether values of every dtype arrived correctly.
        synchronizes: Whether a copy made the host wait for the device, or None if this is unknown.
    """

    device: str
    name: str
    path: str
    works: bool
    synchronizes: bool | None


def device_path_report(
    directory: Path | None = None, timeout: float = 10.0, *, one_launch: bool = True
) -> list[DevicePath]:
    """Check whether and how values from each CUDA device reach a ring. Waits for the devices, so do not use it in training.

    Args:
        directory: Directory for a temporary ring. None selects `/dev/shm` if it exists, otherwise the default of `tempfile`.
        timeout: Maximum time in seconds to wait for a value.
        one_launch: Whether devices may store values directly in the ring (see `DeviceCopies`).

    Returns:
        One result per device. The list is empty if torch is not installed or finds no device.
    """
    try:
        import torch
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return []
    shared = Path("/dev/shm")  # noqa: S108 - the file gets a unique name
    parent = directory or (shared if shared.is_dir() else None)
    with tempfile.TemporaryDirectory(prefix="tensormeter-", dir=parent) as folder:
        try:
            ring = RingFile.create(Path(folder) / "doctor.ring", {}, buffer_bytes=1 << 16, lanes=1)
        except TensormeterError as error:
            return [_failed(_device(index), str(error)) for index in range(torch.cuda.device_count())]
        copies = DeviceCopies(ring, one_launch=one_launch)
        try:
            return [_try(copies, ring, _device(index), timeout) for index in range(torch.cuda.device_count())]
        finally:
            copies.close()
            ring.release()


def _try(copies: DeviceCopies, ring: RingFile, device: "torch.device", timeout: float) -> DevicePath:
    import torch

    try:
        tensors = [
            torch.tensor(value, device=device).to(getattr(torch, name))
            for name, value in _VALUES.items()
            if hasattr(torch, name)
        ]
        copies.prepare(tensors[0])
        torch.cuda.synchronize(device)
        values = sorted((DeviceValue(tensor) for tensor in tensors), key=place)
        expected = [value.tensor.double().item() for value in values]
        word = ring.lanes[0][0] // 8 + 64
        synchronizes = False
        for _ in range(2):  # the second copy takes the path that the trial selected
            for index in range(len(values)):
                ring.words[word + index] = PENDING
            synchronizes |= _synchronizes(lambda: copies.copy(word, values))
            if not _wait(lambda: _have_arrived(copies, ring, word, len(values)), timeout):
                return _failed(device, f"no value arrived within {timeout:g} s")
            stored = [memoryview(ring.buffer).cast("d")[word + i] for i in range(len(values))]
            if stored != expected:
                return _failed(device, f"expected {expected}, found {stored}")
        return DevicePath(
            str(device), torch.cuda.get_device_name(device), copies.paths[str(device)], True, synchronizes
        )
    except Exception as error:  # report a CUDA error as the result
        return _failed(device, f"{type(error).__name__}: {error}")


def _have_arrived(copies: DeviceCopies, ring: RingFile, word: int, number: int) -> bool:
    copies.pending.poll()
    return all(ring.words[word + i] != PENDING for i in range(number))


def _synchronizes(action: Callable[[], None]) -> bool:
    """Run an action, and return whether torch reports that the action waited for the device."""
    import torch

    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")  # this call emits a warning of its own, which is cleared
        caught.clear()
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return any("synchronizing" in str(warning.message) for warning in caught)


def _wait(condition: Callable[[], bool], timeout: float) -> bool:
    deadline, pause = time.monotonic() + timeout, threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.001)
    return True


def _device(index: int) -> "torch.device":
    import torch

    return torch.device("cuda", index)


def _failed(device: "torch.device", reason: str) -> DevicePath:
    import torch

    return DevicePath(str(device), torch.cuda.get_device_name(device), reason, False, None)
