"""Page-locking memory with CUDA, so that devices can store into it while the processor goes on.

torch offers `cudaHostRegister`; the rest is asked of the CUDA runtime that torch has loaded, by name. Where that cannot be
found (a static build, ROCm), what needs it is done without.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tensormeter.record.outcomes import Refused

if TYPE_CHECKING:
    import torch

__all__ = ["is_in_memory", "page_lock", "view_on_device"]

_PORTABLE: Final = 1
"""cudaHostRegisterPortable: page-locked for every CUDA context, hence for every GPU of the process."""

_MAPPED: Final = 2
"""cudaHostRegisterMapped: in the devices' address space. With unified addressing, all page-locked memory is."""

_ALREADY_REGISTERED: Final = 712
"""cudaErrorHostMemoryAlreadyRegistered."""

_CAPTURE_RELAXED: Final = 2
"""cudaStreamCaptureModeRelaxed."""

_HOST_POINTERS_WORK: Final = 91
"""cudaDevAttrCanUseHostPointerForRegisteredMem."""


def page_lock(memory: "torch.Tensor", device: "torch.device") -> None:
    """Register a host tensor's memory, until the process ends. Takes milliseconds for a large one.

    Captures of CUDA graphs that are going on in other threads are not disturbed.

    Args:
        memory: On the host.
        device: A CUDA device that the process uses: another one would get a context just for this, which takes hundreds of
            megabytes of its memory. The registration is for all of them.

    Raises:
        Refused: CUDA does not let it be.
    """
    import torch

    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    size = memory.numel() * memory.element_size()
    with torch.cuda.device(device), _unseen_by_captures():
        code = int(runtime.cudaHostRegister(memory.data_ptr(), size, _PORTABLE | _MAPPED))
    if code in (0, _ALREADY_REGISTERED):  # by another thread that logged its first device value just now
        if code:
            _clear_error()
        return
    _clear_error()
    raise Refused(f"memory could not be page-locked (cudaHostRegister: error {code})")


def view_on_device(memory: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """A tensor on a device whose storage is page-locked host memory: kernels that write to it write there.

    Args:
        memory: Page-locked; float64, contiguous.
        device: A CUDA device with its index.

    Raises:
        Refused: The device reaches the memory under another address, or not at all; or this cannot be found out.
    """
    import torch

    runtime = _runtime()
    if runtime is None:
        raise Refused("the CUDA runtime that torch uses was not found")
    pointer = memory.data_ptr()
    with torch.cuda.device(device):
        same, seen = ctypes.c_int(0), ctypes.c_void_p(None)
        code = runtime.cudaDeviceGetAttribute(ctypes.byref(same), _HOST_POINTERS_WORK, ctypes.c_int(device.index))
        code = code or runtime.cudaHostGetDevicePointer(ctypes.byref(seen), ctypes.c_void_p(pointer), ctypes.c_uint(0))
        if code:
            _clear_error()
            raise Refused(f"the device has no address for the memory (error {code})")
        if not same.value or seen.value != pointer:  # a kernel that stored there would end the process
            raise Refused("the device reaches host memory under other addresses only")
        with torch.inference_mode(mode=False):
            view = torch.as_tensor(_CudaArray(pointer, memory.numel()), device=device)
    if view.device != device or view.data_ptr() != pointer:
        raise Refused(f"torch made a copy on {view.device} instead of a view")
    return view


def is_in_memory(path: Path) -> bool:
    """Whether a file is on a file system that lives in memory. Pages of ext4 or xfs must not be page-locked for devices:
    they are corrupted under writeback.
    """
    import psutil

    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    nearest = next((str(parent) for parent in path.resolve().parents if str(parent) in mounts), "")
    return mounts.get(nearest) in ("tmpfs", "ramfs", "hugetlbfs")


class _CudaArray:
    """The CUDA array interface, version 2, of float64 words somewhere."""

    def __init__(self, pointer: int, words: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (words,),
            "typestr": "<f8",
            "data": (pointer, False),
            "version": 2,
        }


@contextmanager
def _unseen_by_captures() -> Iterator[None]:
    """While another thread captures a CUDA graph, calls such as registering memory would invalidate its capture."""
    runtime, mode = _runtime(), ctypes.c_int(_CAPTURE_RELAXED)
    if runtime is None:
        yield
        return
    runtime.cudaThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    try:
        yield
    finally:
        runtime.cudaThreadExchangeStreamCaptureMode(ctypes.byref(mode))


def _clear_error() -> None:
    """A failed call leaves an error behind that the next unrelated kernel launch would report as its own."""
    runtime = _runtime()
    if runtime is not None:
        runtime.cudaGetLastError()


@cache
def _runtime() -> ctypes.CDLL | None:
    """The CUDA runtime library that torch has loaded; another one would have a state of its own."""
    import torch

    major = (torch.version.cuda or "").partition(".")[0]
    for name in (f"libcudart.so.{major}", f"libcudart.so.{major}.0"):
        try:
            return ctypes.CDLL(name, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
        except OSError:
            continue
    return None
