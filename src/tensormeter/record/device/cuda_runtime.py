"""Access to CUDA runtime functions that torch does not expose.

Callers must also work if the runtime cannot be found, as in static builds or with ROCm.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

__all__ = ["clear_error", "cuda_runtime", "unseen_by_captures"]

_CAPTURE_RELAXED: Final = 2
"""Value of `cudaStreamCaptureModeRelaxed`."""


@cache
def cuda_runtime() -> ctypes.CDLL | None:
    """Return the CUDA runtime library that torch has loaded, or None. Another copy of the library would have separate state."""
    import torch

    major = (torch.version.cuda or "").partition(".")[0]
    for name in (f"libcudart.so.{major}", f"libcudart.so.{major}.0"):
        try:
            return ctypes.CDLL(name, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
        except OSError:
            continue
    return None


@contextmanager
def unseen_by_captures() -> Iterator[None]:
    """Let this thread register memory or query events while another thread captures a CUDA graph.

    Without this context manager, these calls would fail and invalidate the other thread's capture. Entering and leaving it
    takes about 2 microseconds.
    """
    runtime, mode = cuda_runtime(), ctypes.c_int(_CAPTURE_RELAXED)
    if runtime is None:
        yield
        return
    runtime.cudaThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    try:
        yield
    finally:
        runtime.cudaThreadExchangeStreamCaptureMode(ctypes.byref(mode))


def clear_error() -> None:
    """Clear the error that a failed call has left behind. Otherwise, the next kernel launch would report this error."""
    runtime = cuda_runtime()
    if runtime is not None:
        runtime.cudaGetLastError()
