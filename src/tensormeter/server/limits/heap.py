"""Return of freed memory to the system, with glibc. With other C libraries, these functions do nothing."""

import contextlib
import ctypes
from typing import Final

__all__ = ["return_freed_memory", "return_large_blocks"]

_M_MMAP_THRESHOLD: Final = -3
_LARGE_BLOCK: Final = 1 << 20


def return_large_blocks() -> None:
    """Make glibc return large blocks as soon as they are freed.

    By default, glibc increases the minimum size of such blocks up to 32 MiB at run time. Each thread would then keep as
    much memory as its largest query needed.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def return_freed_memory() -> None:
    """Return the pages of all freed blocks. Threads that allocate memory may wait for some milliseconds.

    Otherwise, a single small block in use keeps all memory below it, in the heap of each thread.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
