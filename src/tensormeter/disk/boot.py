"""The last start of the machine, and files that are older than it: a loss of power may have left anything of them."""

import contextlib
import time
from pathlib import Path

__all__ = ["written_before_boot"]


def written_before_boot(*paths: Path) -> bool:
    """Whether all of these files were written last before the machine was started. Missing files are passed over.

    False where the system does not tell when that was, and if there is none of them. Goes by the clock of the time of writing.
    """
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return False
    written = 0.0
    for path in paths:
        with contextlib.suppress(OSError):
            written = max(written, path.stat().st_mtime)
    return 0 < written < time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
