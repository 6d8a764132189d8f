"""Handling of an unresponsive disk: the server waits indefinitely at startup, and ten seconds at shutdown."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["exit_if_stalled", "warn_if_slow"]

_SLOW_START: Final = 10.0
_POLL_INTERVAL: Final = 0.5

_log: Final = logging.getLogger(__name__)


@contextmanager
def warn_if_slow(folder: Path) -> Iterator[None]:
    """Log a warning if opening the store in `folder` takes more than ten seconds."""
    warning = threading.Timer(
        _SLOW_START,
        _log.warning,
        (
            "tensormeter: opening the store in %s is taking more than %.0f s; the server is waiting for the disk",
            folder,
            _SLOW_START,
        ),
    )
    warning.daemon = True
    warning.start()
    try:
        yield
    finally:
        warning.cancel()


def exit_if_stalled(stalled: Callable[[], str | None], seconds: float) -> None:
    """Start a thread that waits for `seconds`, and then ends the process as soon as the disk is unresponsive.

    Acknowledged data is not lost, because it is in the write-ahead log.

    Args:
        stalled: Function that returns why the disk is unresponsive, or None. It must not block.
        seconds: Seconds to wait before the first check of the disk.
    """
    threading.Thread(target=_watch, args=(stalled, seconds), name="tensormeter-stop", daemon=True).start()


def _watch(stalled: Callable[[], str | None], seconds: float) -> None:
    pause = threading.Event()
    pause.wait(seconds)
    while (problem := stalled()) is None:
        pause.wait(_POLL_INTERVAL)
    _log.warning("tensormeter: %s; the server exits without waiting for the disk; acknowledged data is kept", problem)
    os._exit(0)
