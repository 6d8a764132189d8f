"""How long a server waits for a disk that does not answer: when it starts, for as long as it takes, and when it stops, some seconds."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["limited_stop", "said_wait"]

_SLOW_START: Final = 10.0
_LOOK: Final = 0.5

_log: Final = logging.getLogger(__name__)


@contextmanager
def said_wait(folder: Path) -> Iterator[None]:
    """Say in the log that opening the store in `folder` takes long, if it does."""
    warning = threading.Timer(
        _SLOW_START,
        _log.warning,
        (
            "tensormeter: opening the store in %s takes more than %.0f s; the server waits for its disk",
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


def limited_stop(stalled: Callable[[], str | None], seconds: float) -> None:
    """End the process if it should have stopped for so long and the disk does not answer. Returns at once.

    Nothing that was acknowledged is lost: it is in the write-ahead log.

    Args:
        stalled: Why the disk cannot be asked now, or None; does not block.
        seconds: How long to wait at least.
    """
    threading.Thread(target=_watch, args=(stalled, seconds), name="tensormeter-stop", daemon=True).start()


def _watch(stalled: Callable[[], str | None], seconds: float) -> None:
    pause = threading.Event()
    pause.wait(seconds)
    while (problem := stalled()) is None:
        pause.wait(_LOOK)
    _log.warning("tensormeter: %s; the server stops without waiting for it, nothing acknowledged is lost", problem)
    os._exit(0)
