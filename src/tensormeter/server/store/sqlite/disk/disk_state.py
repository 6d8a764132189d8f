"""A monitor that checks the disk in the background, so that reports about problems need not wait for the disk.

A thread measures the free space at intervals, and writes a small file unless recent commits show that the disk works.
Other threads can read the results at any time without blocking, even while the monitor's thread is waiting for the
disk.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tensormeter.disk.private import open_file
from tensormeter.server.store.background import Background
from tensormeter.server.store.sqlite.disk.filesystem_trial import FULL
from tensormeter.server.store.sqlite.disk.free_space import FreeSpace

__all__ = ["DiskMonitor"]

_STALLED: Final = 5.0
"""Seconds that an operation may take before the disk counts as not responding."""

_BUSY: Final = 1.0
_IDLE: Final = 3.0
"""Seconds between two checks of the disk: `_BUSY` while the disk is in use or has a problem, otherwise `_IDLE`."""

_WELL: Final = 3.0
"""Seconds without a problem after which the monitor logs that the disk works again."""

_BLOCK: Final = 4096
_MUCH: Final = 256 << 10
"""Number of bytes that a check writes: `_MUCH` if the disk was full or a commit failed, otherwise `_BLOCK`."""

_log: Final = logging.getLogger(__name__)


class DiskMonitor:
    """A monitor of a store's disk, which runs from `watch` until `stop`. Only `stop` blocks, for up to one second."""

    def __init__(self, folder: Path, space: FreeSpace) -> None:
        self._folder = folder
        self._path = folder / "probe"
        self._space = space
        self._on_change: Callable[[], None] = _ignore
        self._stopping = False
        self._wake = threading.Event()
        self._waiting_since: float | None = None
        self._worked = False
        self._error: str | None = None
        self._failure: str | None = None
        self._retry = False
        self._full = False
        self._thread = threading.Thread(target=self._loop, name="tensormeter-disk", daemon=True)
        self._reporter: Background | None = None

    def watch(self, on_change: Callable[[], None]) -> None:
        """Start the thread.

        Args:
            on_change: Function that starts a retry of failed work. The monitor's thread calls this function when the
                disk works or has space again. It must not block.
        """
        self._on_change = on_change
        self._thread.start()
        # Report on a separate thread, because the monitor's thread may be waiting for the disk.
        self._reporter = Background("tensormeter-disk-report", _Report(self.problem, self._folder).refresh, _BUSY)

    def worked(self) -> None:
        """Record that the store has committed."""
        self._worked = True
        self._failure = self._error = None

    def failed(self, error: Exception) -> None:
        """Record that the store has failed to commit."""
        self._failure = str(error)
        self._retry = True
        self._wake.set()

    @property
    def failing(self) -> bool:
        """Whether the last commit failed."""
        return self._failure is not None

    def stalled(self) -> str | None:
        """Return a message if the disk does not respond, or None."""
        since = self._waiting_since
        waited = 0.0 if since is None else time.monotonic() - since
        if waited < _STALLED:
            return None
        return f"the disk of {self._folder} has not responded for {waited:.0f} s; requests will continue once it does"

    def problem(self) -> str | None:
        """Return a message about the disk's current problem, or None."""
        return self.stalled() or self._space.problem() or self._error or self._failure

    def stop(self) -> None:
        """Stop the thread, or abandon it if the disk does not respond."""
        self._stopping = True
        self._wake.set()
        if self._reporter is not None:
            self._reporter.stop()
            self._thread.join(1)

    def _loop(self) -> None:
        while not self._stopping:
            quiet = self._check()
            self._wake.wait(_IDLE if quiet else _BUSY)
            if self._wake.is_set() and not self._stopping:
                self._wake.clear()

    def _check(self) -> bool:
        """Check the disk once. Return whether the next check can wait for `_IDLE` seconds."""
        worked, self._worked = self._worked, False
        was_wrong = self._error is not None or self._failure is not None
        self._waiting_since = time.monotonic()
        try:
            regained = self._space.refresh()
            if not worked or was_wrong:
                self._write()
            self._error, self._full = None, False
        except Exception as error:  # the next check may succeed after any error
            reason = error.strerror if isinstance(error, OSError) else repr(error)
            self._full = isinstance(error, OSError) and error.errno in FULL
            self._error = (
                f"cannot write to the disk of {self._folder}: {reason}; the server accepts requests again once the "
                "disk works"
            )
            regained = False
        finally:
            self._waiting_since = None
        if self._error is None and (regained or was_wrong or self._retry):
            self._retry = False
            self._on_change()  # it starts a commit, which shows whether the disk works
        return not worked and self._error is None and self._failure is None and self._space.problem() is None

    def _write(self) -> None:
        """Write a small file, or a larger one if the disk was full or a commit failed.

        The file is not synced, because syncing is slow on a busy disk.

        Raises:
            OSError: Writing to the disk failed.
        """
        self._restart_clock()
        descriptor = open_file(self._path)
        try:
            self._restart_clock()
            os.pwrite(descriptor, bytes(_MUCH if self._full or self._failure else _BLOCK), 0)
        finally:
            os.close(descriptor)
            self._restart_clock()
            self._path.unlink()

    def _restart_clock(self) -> None:
        """Restart the clock, so that the time limit applies to each disk operation separately."""
        self._waiting_since = time.monotonic()


class _Report:
    """A reporter that logs when the disk develops a problem, and when it has worked again for a few seconds."""

    def __init__(self, problem: Callable[[], str | None], folder: Path) -> None:
        self._problem = problem
        self._folder = folder
        self._since: float | None = None
        self._well_since = 0.0

    def refresh(self) -> None:
        now = time.monotonic()
        problem = self._problem()
        if problem is not None:
            if self._since is None:
                self._since = now
                _log.warning("tensormeter: %s", problem)
            self._well_since = now
        elif self._since is not None and now - self._well_since > _WELL:
            _log.warning("tensormeter: the disk of %s works again, after %.0f s", self._folder, now - self._since)
            self._since = None


def _ignore() -> None:
    pass
