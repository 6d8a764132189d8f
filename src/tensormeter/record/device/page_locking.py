"""Page-locking of memory with CUDA, so that devices can store values in it while the CPU continues.

Page-locked memory must stay mapped, because CUDA does not detect when it is unmapped. Devices would continue to store values in
the old pages. CUDA would also treat memory that is later mapped at the same address, such as the next run's ring, as already
page-locked. Values for this memory would never arrive.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tensormeter.record.device.cuda_runtime import clear_error, cuda_runtime, unseen_by_captures
from tensormeter.record.values.outcomes import Refused

if TYPE_CHECKING:
    import torch

__all__ = ["is_in_memory", "page_lock", "retire", "unlock_retired", "view_on_device"]

_PORTABLE: Final = 1
"""Flag `cudaHostRegisterPortable`. It page-locks the memory for all CUDA contexts, and so for all GPUs of the process."""

_MAPPED: Final = 2
"""Flag `cudaHostRegisterMapped`. It maps the memory into the devices' address space, which unified addressing does anyway."""

_ALREADY_REGISTERED: Final = 712
"""Error code `cudaErrorHostMemoryAlreadyRegistered`."""

_HOST_POINTERS_WORK: Final = 91
"""Device attribute `cudaDevAttrCanUseHostPointerForRegisteredMem`."""

_locked: Final[dict[int, "torch.Tensor"]] = {}
"""Page-locked tensors by memory address. These references keep the memory mapped."""

_retired: Final[dict[int, Callable[[], bool]]] = {}
"""The `is_quiet` functions of page-locked memory that is no longer used, by memory address."""


def page_lock(memory: "torch.Tensor", device: "torch.device") -> None:
    """Page-lock a host tensor's memory, and keep it mapped. Takes milliseconds for a large tensor.

    The memory stays page-locked until `retire` and then `unlock_retired` are called, or until the process ends.
    Page-locking does not disturb CUDA graph captures in other threads.

    Args:
        memory: Tensor on the host.
        device: Any CUDA device that the process already uses. On an unused device, CUDA would create a context, which takes
            hundreds of megabytes of device memory. The memory is page-locked for all devices.

    Raises:
        Refused: CUDA cannot page-lock the memory.
    """
    import torch

    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address, size = memory.data_ptr(), memory.numel() * memory.element_size()
    was_locked = address in _locked
    _locked[address] = memory
    with torch.cuda.device(device), unseen_by_captures():
        code = int(runtime.cudaHostRegister(address, size, _PORTABLE | _MAPPED))
    if code:
        clear_error()
    if code == _ALREADY_REGISTERED and (was_locked or _locked.get(address) is not memory):
        return  # already locked by a signal handler, or by the call that this signal handler interrupted
    if code:
        _locked.pop(address, None)
        raise Refused(f"memory could not be page-locked (cudaHostRegister: error {code})")
    _locked[address] = memory


def retire(memory: "torch.Tensor", is_quiet: Callable[[], bool]) -> None:
    """Mark memory as unused. The memory stays page-locked until a later call to `unlock_retired`.

    Args:
        memory: Tensor that was passed to `page_lock`. If the memory is not page-locked, the call does nothing.
        is_quiet: Function that returns whether all values from devices have arrived. Until then, the memory stays page-locked.
    """
    if memory.data_ptr() in _locked:
        _retired[memory.data_ptr()] = is_quiet


def unlock_retired() -> None:
    """Release retired memory. CUDA may wait for devices, so call this function at the start of a run, not at its end.

    A run often ends because a device hangs. Waiting for this device would then block the end of the run.
    """
    for address, is_quiet in list(_retired.items()):
        if not is_quiet() or _retired.pop(address, None) is None:  # still in use, or released by another thread
            continue
        import torch

        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        with unseen_by_captures():
            code = int(runtime.cudaHostUnregister(address))
        if code:
            clear_error()  # the memory stays mapped until the process ends
        else:
            del _locked[address]


def view_on_device(memory: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Create a device tensor that uses page-locked host memory as its storage. Kernels that write to it write to host memory.

    Args:
        memory: Page-locked, contiguous float64 tensor.
        device: CUDA device, including its index.

    Raises:
        Refused: The device cannot access the memory at the host's address, or the CUDA runtime was not found.
    """
    import torch

    runtime = cuda_runtime()
    if runtime is None:
        raise Refused("could not find the CUDA runtime that torch uses")
    pointer = memory.data_ptr()
    with torch.cuda.device(device):
        same, device_pointer = ctypes.c_int(0), ctypes.c_void_p(None)
        code = runtime.cudaDeviceGetAttribute(ctypes.byref(same), _HOST_POINTERS_WORK, ctypes.c_int(device.index))
        code = code or runtime.cudaHostGetDevicePointer(
            ctypes.byref(device_pointer), ctypes.c_void_p(pointer), ctypes.c_uint(0)
        )
        if code:
            clear_error()
            raise Refused(f"the device cannot address the memory (CUDA error {code})")
        if not same.value or device_pointer.value != pointer:  # a kernel that writes there would crash the process
            raise Refused("the device addresses host memory differently from the host")
        with torch.inference_mode(mode=False):
            view = torch.as_tensor(_CudaArray(pointer, memory.numel()), device=device)
    if view.device != device or view.data_ptr() != pointer:
        raise Refused(f"torch made a copy on {view.device} instead of a view")
    return view


def is_in_memory(path: Path) -> bool:
    """Return whether a file is on an in-memory file system.

    Pages of files on ext4 or xfs must not be page-locked for devices, because writeback would corrupt the files.
    """
    import psutil

    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    nearest = next((str(parent) for parent in path.resolve().parents if str(parent) in mounts), "")
    return mounts.get(nearest) in ("tmpfs", "ramfs", "hugetlbfs")


class _CudaArray:
    """An array of float64 words at an address, exposed through version 2 of the CUDA array interface."""

    def __init__(self, pointer: int, words: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (words,),
            "typestr": "<f8",
            "data": (pointer, False),
            "version": 2,
        }


def _forget_after_fork() -> None:
    """Forget retired memory in a forked child process. The child cannot use CUDA, so only the parent can unlock the memory."""
    _retired.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
