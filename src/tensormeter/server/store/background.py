"""A thread that does one thing again and again, when asked to or after an interval."""

import logging
import threading
from collections.abc import Callable

from tensormeter.server.store.models.errors import StoreUnavailableError

__all__ = ["Background"]

_log = logging.getLogger(__name__)


class Background:
    """Calls `work` on a daemon thread of its own, one call at a time, from construction until `stop`."""

    def __init__(self, name: str, work: Callable[[], None], interval: float) -> None:
        """Start the thread.

        Args:
            name: Of the thread.
            work: What to do. What it raises is logged, and it is called again after the interval. That the store cannot be
                used now is logged once, in one line, until it can be used again.
            interval: Seconds between two calls if nobody calls `wake`.
        """
        self._work = work
        self._interval = interval
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Call `work` soon. Does not block."""
        self._wake.set()

    def stop(self) -> None:
        """Return once no call is under way and none will follow."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _loop(self) -> None:
        unavailable = False
        while True:
            self._wake.wait(self._interval)
            if self._stopping:
                return
            self._wake.clear()
            try:
                self._work()
            except StoreUnavailableError as error:
                if not unavailable:
                    _log.warning("tensormeter: %s waits: %s", self._thread.name, error)
                unavailable = True
            except Exception:
                _log.exception("tensormeter: %s failed; it will be tried again", self._thread.name)
            else:
                unavailable = False
