"""The lock of everything that instruments do once and not each time, and the warnings that are given once.

One lock for all, taken over a fork, so that a child finds it free.
"""

import os
import threading
from typing import Final

from tensormeter.logger import get_logger

__all__ = ["LOCK", "warn_once"]

logger: Final = get_logger()

LOCK: Final = threading.RLock()  # re-entered by a signal handler that measures
"""Never held while a user's code runs."""

_MAX_WARNINGS: Final = 1000
_warned: set[object] = set()


def warn_once(about: object, message: str, *arguments: object, error: BaseException | None = None) -> None:
    """Warn, unless it was done before about the same."""
    if about not in _warned and len(_warned) < _MAX_WARNINGS:
        _warned.add(about)
        logger.warning(message, *arguments, exc_info=error)


os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)
