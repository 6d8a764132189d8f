"""Page-locking memory with CUDA, so that devices can store into it while the processor goes on.

Memory that is page-locked stays mapped. CUDA does not notice when it is unmapped: devices would go on storing into the pages
that were there, and what is mapped at the same addresses later, such as the next run's ring, would count as page-locked
already and never see a value.
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
"""cudaHostRegisterPortable: page-locked for every CUDA context, hence for every GPU of the process."""

_MAPPED: Final = 2
"""cudaHostRegisterMapped: in the devices' address space. With unified addressing, all page-locked memory is."""

_ALREADY_REGISTERED: Final = 712
"""cudaErrorHostMemoryAlreadyRegistered."""

_HOST_POINTERS_WORK: Final = 91
"""cudaDevAttrCanUseHostPointerForRegisteredMem."""

_locked: Final[dict[int, "torch.Tensor"]] = {}
"""Memory that is page-locked, by its address: kept mapped by this."""

_retired: Final[dict[int, Callable[[], bool]]] = {}
"""What of it is no longer used, with a function that tells whether all that devices were to store there has come."""


def page_lock(memory: "torch.Tensor", device: "torch.device") -> None:
    """Register a host tensor's memory, and keep it mapped. Takes milliseconds for a large one.

    It stays so until the process ends, or until it has been retired and `unlock_retired` is called.
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
    address, size = memory.data_ptr(), memory.numel() * memory.element_size()
    ours = address in _locked
    _locked[address] = memory
    with torch.cuda.device(device), unseen_by_captures():
        code = int(runtime.cudaHostRegister(address, size, _PORTABLE | _MAPPED))
    if code:
        clear_error()
    if code == _ALREADY_REGISTERED and (ours or _locked.get(address) is not memory):
        return  # done by a signal handler in between, or what one has interrupted
    if code:
        _locked.pop(address, None)
        raise Refused(f"memory could not be page-locked (cudaHostRegister: error {code})")
    _locked[address] = memory


def retire(memory: "torch.Tensor", is_quiet: Callable[[], bool]) -> None:
    """Say that memory is used no more. It stays page-locked until a later `unlock_retired`.

    Args:
        memory: As given to `page_lock`; nothing is done if it has not been page-locked.
        is_quiet: Tells whether all that devices were to store there has come. Until it does, the memory stays as it is.
    """
    if memory.data_ptr() in _locked:
        _retired[memory.data_ptr()] = is_quiet


def unlock_retired() -> None:
    """Give memory that is used no more back. CUDA may wait for devices in here, so this is for the beginning of a run.

    At the end of a run, devices may be hanging, which is often why it ends.
    """
    for address, is_quiet in list(_retired.items()):
        if not is_quiet() or _retired.pop(address, None) is None:  # another thread does it
            continue
        import torch

        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        with unseen_by_captures():
            code = int(runtime.cudaHostUnregister(address))
        if code:
            clear_error()  # it stays mapped for good
        else:
            del _locked[address]


def view_on_device(memory: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """A tensor on a device whose storage is page-locked host memory: kernels that write to it write there.

    Args:
        memory: Page-locked; float64, contiguous.
        device: A CUDA device with its index.

    Raises:
        Refused: The device reaches the memory under another address, or not at all; or this cannot be found out.
    """
    import torch

    runtime = cuda_runtime()
    if runtime is None:
        raise Refused("the CUDA runtime that torch uses was not found")
    pointer = memory.data_ptr()
    with torch.cuda.device(device):
        same, seen = ctypes.c_int(0), ctypes.c_void_p(None)
        code = runtime.cudaDeviceGetAttribute(ctypes.byref(same), _HOST_POINTERS_WORK, ctypes.c_int(device.index))
        code = code or runtime.cudaHostGetDevicePointer(ctypes.byref(seen), ctypes.c_void_p(pointer), ctypes.c_uint(0))
        if code:
            clear_error()
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


def _forget_after_fork() -> None:
    """A child cannot use CUDA, and what is page-locked is its parent's affair."""
    _retired.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
