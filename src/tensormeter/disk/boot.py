"""Detects files that are older than the last start of the machine: a power failure may have damaged them."""

import contextlib
import time
from pathlib import Path

__all__ = ["written_before_boot"]


def written_before_boot(*paths: Path) -> bool:
    """Whether all these files were last written before the machine was started. Missing files are ignored.

    False if no file exists, or if the system does not report the time of its start. It compares wall-clock times.
    """
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return False
    written = 0.0
    for path in paths:
        with contextlib.suppress(OSError):
            written = max(written, path.stat().st_mtime)
    return 0 < written < time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
