"""Whether the disk works, known without asking it: for answers that must not wait for the disk.

A thread of its own writes a small file from time to time, unless commits show that the disk works. It also looks how much room there
is. What it found, and for how long it has been waiting for the disk, can be read at any time without blocking.
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
"""Seconds after which one operation on the disk counts as not answered."""

_BUSY: Final = 1.0
_IDLE: Final = 3.0
"""Seconds between two looks at the disk: while it is written to or something is wrong, and otherwise."""

_WELL: Final = 3.0
"""Seconds without trouble after which the log says that the disk works again."""

_BLOCK: Final = 4096
_MUCH: Final = 256 << 10
"""Bytes that are written to find out whether the disk works, and whether there is room again on one that was full."""

_log: Final = logging.getLogger(__name__)


class DiskMonitor:
    """Watches the disk of a store from `watch` until `stop`. Nothing blocks except `stop`, which waits for a second at most."""

    def __init__(self, folder: Path, room: FreeSpace) -> None:
        """Name the disk.

        Args:
            folder: Data folder of the store.
            room: Room that the store has there.
        """
        self._folder = folder
        self._path = folder / "probe"
        self._space = room
        self._on_change: Callable[[], None] = _ignore
        self._stopping = False
        self._wake = threading.Event()
        self._asked: float | None = None
        self._worked = False
        self._error: str | None = None
        self._failure: str | None = None
        self._retry = False
        self._full = False
        self._thread = threading.Thread(target=self._loop, name="tensormeter-disk", daemon=True)
        self._reporter: Background | None = None

    def watch(self, on_change: Callable[[], None]) -> None:
        """Start to look at the disk.

        Args:
            on_change: Called on a thread when the disk works again or has room again, so that work can be done which had failed;
                must not block.
        """
        self._on_change = on_change
        self._thread.start()
        # On another thread, for the time when the first one waits for the disk.
        self._reporter = Background("tensormeter-disk-report", _Report(self.problem, self._folder).look, _BUSY)

    def worked(self) -> None:
        """The store has committed something."""
        self._worked = True
        self._failure = self._error = None

    def failed(self, error: Exception) -> None:
        """The store could not commit something."""
        self._failure = str(error)
        self._retry = True
        self._wake.set()

    @property
    def failing(self) -> bool:
        """Whether the last commit failed."""
        return self._failure is not None

    def stalled(self) -> str | None:
        """Why nothing can be read or written now, or None: the disk does not answer."""
        asked = self._asked
        waited = 0.0 if asked is None else time.monotonic() - asked
        if waited < _STALLED:
            return None
        return f"the disk of {self._folder} has not answered for {waited:.0f} s; everything goes on once it does"

    def problem(self) -> str | None:
        """What is wrong with the disk, for people, or None."""
        return self.stalled() or self._space.problem() or self._error or self._failure

    def stop(self) -> None:
        """End the thread, or leave it behind if the disk does not answer."""
        self._stopping = True
        self._wake.set()
        if self._reporter is not None:
            self._reporter.stop()
            self._thread.join(1)

    def _loop(self) -> None:
        while not self._stopping:
            quiet = self._look()
            self._wake.wait(_IDLE if quiet else _BUSY)
            if self._wake.is_set() and not self._stopping:
                self._wake.clear()

    def _look(self) -> bool:
        """Look at the disk once. Returns whether there is nothing new to be expected soon."""
        worked, self._worked = self._worked, False
        was_wrong = self._error is not None or self._failure is not None
        self._asked = time.monotonic()
        try:
            regained = self._space.look()
            if not worked or was_wrong:
                self._write()
            self._error, self._full = None, False
        except Exception as error:  # whatever it is, the next look may be better
            reason = error.strerror if isinstance(error, OSError) else repr(error)
            self._full = isinstance(error, OSError) and error.errno in FULL
            self._error = (
                f"cannot write to the disk of {self._folder}: {reason}; "
                "requests are accepted again once that is possible"
            )
            regained = False
        finally:
            self._asked = None
        if self._error is None and (regained or was_wrong or self._retry):
            self._retry = False
            self._on_change()  # a commit there shows whether all is well
        return not worked and self._error is None and self._failure is None and self._space.problem() is None

    def _write(self) -> None:
        """Write a small file; more of it if there was no room before. It is not synced, which takes long on a busy disk.

        Raises:
            OSError: The disk refuses.
        """
        self._next()
        descriptor = open_file(self._path)
        try:
            self._next()
            os.pwrite(descriptor, bytes(_MUCH if self._full or self._failure else _BLOCK), 0)
        finally:
            os.close(descriptor)
            self._next()
            self._path.unlink()

    def _next(self) -> None:
        """A slow disk answers: the time counts for each operation."""
        self._asked = time.monotonic()


class _Report:
    """Writes to the log when something is wrong with the disk, and when all has been well again for some seconds."""

    def __init__(self, problem: Callable[[], str | None], folder: Path) -> None:
        self._problem = problem
        self._folder = folder
        self._since: float | None = None
        self._well_since = 0.0

    def look(self) -> None:
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
