"""Protection of our files in programs without standard input, output or error, such as daemons."""

import contextlib
import os

__all__ = ["reserve_standard_files"]


def reserve_standard_files() -> None:
    """Open the null device on those of the descriptors 0, 1 and 2 that are closed.

    Otherwise, the next file that the process opens gets such a descriptor, and native code that prints would write to it.
    Child processes do not inherit the reserved descriptors.
    """
    with contextlib.suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)
