"""Marks that show other hosts which of the run's processes are alive on this host."""

import contextlib
import time

from tensormeter.agent.attempts.counter import ALIVE_INTERVAL, mark_alive
from tensormeter.agent.run_directory.directory import RunDirectory

__all__ = ["AliveMarks"]


class AliveMarks:
    """Writer of the file `alive` in a run's directory. It blocks on the disk."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._living: set[str] = set()
        self._marked_at = 0.0

    def write(self, living: set[str]) -> None:
        """Update the file if the set of living processes has changed, or if `ALIVE_INTERVAL` has passed.

        Args:
            living: IDs of the living processes.
        """
        now = time.monotonic()
        if living != self._living:
            with contextlib.suppress(OSError), self._directory.siblings_locked():
                mark_alive(self._directory, sorted(living))
                self._living, self._marked_at = living, now
        elif living and now - self._marked_at >= ALIVE_INTERVAL:
            mark_alive(self._directory, None)
            self._marked_at = now
