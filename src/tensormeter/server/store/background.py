"""A thread that repeats a task at an interval or on request."""

import logging
import threading
from collections.abc import Callable

from tensormeter.server.store.models.errors import StoreUnavailableError

__all__ = ["Background"]

_log = logging.getLogger(__name__)


class Background:
    """A daemon thread that calls `work`, one call at a time, from construction until `stop`."""

    def __init__(self, name: str, work: Callable[[], None], interval: float) -> None:
        """Start the thread.

        Args:
            name: Name of the thread.
            work: Task to repeat. If it raises an exception, the thread logs the exception and repeats the task after
                the interval. It logs only the first of several consecutive `StoreUnavailableError` exceptions.
            interval: Seconds between two calls unless `wake` is called.
        """
        self._work = work
        self._interval = interval
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Run the task soon. Does not block."""
        self._wake.set()

    def stop(self) -> None:
        """Wait for the current call to finish, and prevent further calls."""
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
                    _log.warning("tensormeter: %s is waiting: %s", self._thread.name, error)
                unavailable = True
            except Exception:
                _log.exception("tensormeter: %s failed and will be retried", self._thread.name)
            else:
                unavailable = False
