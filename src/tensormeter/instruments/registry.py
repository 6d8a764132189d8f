"""The lock for the creation of instruments and streams, and warnings that are logged once.

The lock is acquired before a fork and released afterwards, so that it is free in the child process.
"""

import os
import threading
from typing import Final

from tensormeter.logger import get_logger

__all__ = ["LOCK", "warn_once"]

logger: Final = get_logger()

LOCK: Final = threading.RLock()  # reentrant, because a signal handler may record a measurement
"""Lock shared by all providers. User code never runs while this lock is held."""

_MAX_WARNINGS: Final = 1000
_warned: set[object] = set()


def warn_once(key: object, message: str, *arguments: object, error: BaseException | None = None) -> None:
    """Log a warning, unless a warning with the same key has already been logged."""
    if key not in _warned and len(_warned) < _MAX_WARNINGS:
        _warned.add(key)
        logger.warning(message, *arguments, exc_info=error)


os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)
