"""The CUDA runtime that torch has loaded, for what torch does not offer.

Where it cannot be found (a static build, ROCm), what needs it is done without.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

__all__ = ["clear_error", "cuda_runtime", "unseen_by_captures"]

_CAPTURE_RELAXED: Final = 2
"""cudaStreamCaptureModeRelaxed."""


@cache
def cuda_runtime() -> ctypes.CDLL | None:
    """The library; another copy of it would have a state of its own."""
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
    """A context in which this thread may register memory, or query events, while another one captures a CUDA graph.

    Elsewhere such a call fails, and invalidates the other thread's capture. Costs about 2 microseconds.
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
    """Forget the error that a failed call leaves behind: the next unrelated kernel launch would report it as its own."""
    runtime = cuda_runtime()
    if runtime is not None:
        runtime.cudaGetLastError()
