"""A standby process that waits until the agent is killed and then becomes the next agent.

The standby is a bare interpreter without packages. It needs about 10 MB of memory, half of it shared, and sleeps in the
kernel until the agent's end of a pipe closes. It opens no files, because it inherits the agent's locks, log and
description of the run. Before it becomes the agent, it forks the next standby, so each agent has a standby from the
start. The first agent is also started through this file, and therefore has a standby, too. An agent that ends by itself
notifies its standby, which then ends as well. If the standby is gone, the agent starts another one.

This file is run by its path, without `tensormeter` being importable, so it uses only the standard library.
"""

import contextlib
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

__all__ = ["Standby", "begin_command"]

_ENDED = b"e"
_WORKED = b"w"

_NOTICE = 3
_FIRST_LOCK = 4
_ABOVE = 16
"""Upper bound (exclusive) on the standby's descriptors while it is being started."""

_PATIENT = 20
"""Number of consecutive agents that may die before doing any work and still be replaced without delay."""

_LONGEST_DELAY = 30.0
_RETRY = 5.0


class Standby:
    """Handle that keeps the agent's standby process running. Any thread may use it. It never waits for a disk."""

    def __init__(self, path: str, locks: Callable[[], list[int]], state: "tuple[int, int, int]") -> None:
        """
        Args:
            path: Path of the run's directory, which also identifies the run in the process list.
            locks: Function that returns the descriptors that hold the agent's locks.
            state: State that this agent was started with, as three numbers: how many consecutive agents died before
                doing any work, the standby's process ID, and the descriptor of the pipe that wakes the standby.
        """
        self._path = path
        self._locks = locks
        self._deaths, pid, notice = state
        self._changing = threading.Lock()
        self._pid: int | None = pid
        self._notice: int | None = notice
        self._lock_descriptors: list[int] = locks()
        self._worked = False
        self._dismissed = False
        self._retry_at = 0.0

    @property
    def pid(self) -> int | None:
        """Process ID of the standby; None if there is none."""
        return self._pid

    def keep(self) -> None:
        """Start a standby unless one with the current locks is running."""
        with self._changing:
            if self._dismissed or time.monotonic() < self._retry_at:
                return
            locks = self._locks()
            if self._has_ended():
                self._end()
            if locks and (self._pid is None or locks != self._lock_descriptors):
                before = self._pid, self._notice
                try:
                    self._start(locks)
                except OSError:  # no process or memory is available
                    self._retry_at = time.monotonic() + _RETRY
                else:
                    _end(*before)  # after the start, so that there is always a standby

    def worked(self) -> None:
        """Notify the standby that the agent has done some work, so that it replaces the agent without delay."""
        if not self._worked:
            with self._changing:
                self._worked = True
                if self._notice is not None:
                    _tell(self._notice, _WORKED)

    def dismiss(self) -> None:
        """Notify the standby that the agent is ending by itself and must not be replaced."""
        with self._changing:
            self._dismissed = True
            self._end()

    def _start(self, locks: list[int]) -> None:
        read, write = os.pipe()
        try:
            copies = [fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for source in (read, *locks)]
            try:
                numbers = ",".join(str(_FIRST_LOCK + number) for number in range(len(locks)))
                self._pid = os.posix_spawn(
                    sys.executable,
                    begin_command(self._path, numbers, notice=_NOTICE, deaths=self._deaths),
                    os.environ,
                    file_actions=[(os.POSIX_SPAWN_DUP2, copy, _NOTICE + number) for number, copy in enumerate(copies)],
                    setsid=True,
                )
            finally:
                for copy in copies:
                    os.close(copy)
        except OSError:
            os.close(write)
            raise
        finally:
            os.close(read)
        self._notice = write
        self._lock_descriptors = locks
        if self._worked:
            _tell(write, _WORKED)

    def _has_ended(self) -> bool:
        try:
            return self._pid is not None and os.waitpid(self._pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            return True

    def _end(self) -> None:
        """End the standby process and forget it."""
        _end(self._pid, self._notice)
        self._pid = self._notice = None


def begin_command(path: str, locks: str, *, notice: int = -1, deaths: int = 0) -> list[str]:
    """Return the command line of a process that becomes the agent of the run directory `path`.

    If `notice` is -1, the process becomes the agent immediately. Otherwise, `notice` is the read end of a pipe, and the
    process waits until the agent that holds the write end is gone.
    """
    return [sys.executable, "-I", "-S", __file__, path, str(notice), str(deaths), locks]


def _end(pid: int | None, notice: int | None) -> None:
    if notice is not None:
        _tell(notice, _ENDED)
        os.close(notice)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)  # it may be suspended and unable to end by itself
            os.waitpid(pid, 0)


def _tell(notice: int, word: bytes) -> None:
    with contextlib.suppress(OSError):  # the standby is gone too
        os.write(notice, word)


def main(arguments: Sequence[str]) -> None:
    """Wait, then become the agent or end: ``python -I -S standby.py RUN_DIRECTORY NOTICE DEATHS LOCKS``.

    The agent's arguments are RUN_DIRECTORY, LOCKS and the state for `Standby`: DEATHS, the process ID of the agent's
    standby, and the descriptor that wakes it.
    """
    path, notice, deaths, locks = arguments[0], int(arguments[1]), int(arguments[2]), arguments[3]
    while True:
        if notice >= 0:
            words = b""
            while word := os.read(notice, 16):
                words += word
            os.close(notice)
            if _ENDED in words:
                return
            deaths = 0 if _WORKED in words else deaths + 1
            if deaths > _PATIENT:
                time.sleep(min(2.0 ** (deaths - _PATIENT - 1), _LONGEST_DELAY))
        notice, other_end = os.pipe()
        if standby := os.fork():
            os.close(notice)
            os.set_inheritable(other_end, True)
            os.lseek(0, 0, os.SEEK_SET)  # rewind the description of the run, which the previous agent has read
            command = [sys.executable, "-P", "-m", "tensormeter.agent", path, locks, str(deaths), str(standby)]
            os.execv(command[0], [*command, str(other_end)])  # noqa: S606
        os.setsid()
        os.close(other_end)


if __name__ == "__main__":
    main(sys.argv[1:])
