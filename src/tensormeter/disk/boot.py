"""Detection of files last written before the machine started, which a power failure may have damaged."""

import contextlib
import time
from pathlib import Path

__all__ = ["written_before_boot"]


def written_before_boot(*paths: Path) -> bool:
    """Return whether all these files were last written before the machine started. Missing files are ignored.

    The comparison uses wall-clock times. The result is False if no file exists or the system does not report its start
    time.
    """
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return False
    written = 0.0
    for path in paths:
        with contextlib.suppress(OSError):
            written = max(written, path.stat().st_mtime)
    return 0 < written < time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
