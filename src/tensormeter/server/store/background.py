"""A thread that repeats a task, on request or after an interval."""

import logging
import threading
from collections.abc import Callable

from tensormeter.server.store.models.errors import StoreUnavailableError

__all__ = ["Background"]

_log = logging.getLogger(__name__)


class Background:
    """Calls `work` on a daemon thread, one call at a time, from construction until `stop`."""

    def __init__(self, name: str, work: Callable[[], None], interval: float) -> None:
        """Start the thread.

        Args:
            name: Name of the thread.
            work: Task to repeat. After an exception, which is logged, it is called again after the interval. While the store is
                unavailable, the log has only one line about it.
            interval: Seconds between two calls without `wake`.
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
        """Wait for the present call, and prevent further calls."""
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
