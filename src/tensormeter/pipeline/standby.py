"""A process that waits for the agent to be killed, and becomes the next agent.

Each agent starts one. It is a bare interpreter without packages (some 8 MB), and sleeps in the kernel until the agent's end of a
pipe is closed. It has inherited the agent's locks, its description of the run and its log, so it opens no file. An agent that ends
by itself says so before, and its standby ends, too; an agent whose standby is gone starts another one.

This file is run by its path, without `tensormeter` being importable: it uses the standard library alone.
"""

import contextlib
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

__all__ = ["Standby"]

_ENDED = b"e"
_WORKED = b"w"

_NOTICE = 3
_FIRST_LOCK = 4
_ABOVE = 16
"""Descriptors of the standby are below this number while it is started."""

_PATIENT = 2
"""Agents in a row that die before they have worked and are replaced without delay."""

_LONGEST_DELAY = 30.0
_RETRY = 5.0


class Standby:
    """The agent's side: starts the process, and sees that there is one. Any thread; never waits for a disk."""

    def __init__(self, name: str, command: Sequence[str], locks: Callable[[], list[int]], deaths: int) -> None:
        """
        Args:
            name: What the list of processes shows, such as the path of the run's directory.
            command: Starts an agent; the descriptors of its locks, separated by commas, and a number for `deaths` are added to it.
            locks: Gives the descriptors that hold the agent's locks.
            deaths: How many agents in a row have died before they had worked.
        """
        self._name = name
        self._command = list(command)
        self._locks = locks
        self._deaths = deaths
        self._changing = threading.Lock()
        self._pid: int | None = None
        self._notice: int | None = None
        self._held: list[int] = []
        self._worked = False
        self._dismissed = False
        self._retry_at = 0.0

    @property
    def pid(self) -> int | None:
        """Process id of the standby, if there is one."""
        return self._pid

    def keep(self) -> None:
        """Start the process, unless there is one that has the present locks."""
        with self._changing:
            if self._dismissed or time.monotonic() < self._retry_at:
                return
            locks = self._locks()
            if self._pid is not None and (self._has_ended() or locks != self._held):
                self._end()
            if self._pid is None and locks:
                try:
                    self._start(locks)
                except OSError:  # no more processes, or no memory
                    self._retry_at = time.monotonic() + _RETRY

    def worked(self) -> None:
        """The agent works: another one is to follow it without delay."""
        if not self._worked:
            with self._changing:
                self._worked = True
                self._tell(_WORKED)

    def dismiss(self) -> None:
        """The agent ends by itself: no other one is to follow it."""
        with self._changing:
            self._dismissed = True
            self._end()

    def _start(self, locks: list[int]) -> None:
        read, self._notice = os.pipe()
        try:
            sources = [read, *locks]
            copies = [fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for source in sources]
            try:
                self._pid = os.posix_spawn(
                    sys.executable,
                    [
                        *(sys.executable, "-I", "-S", __file__, self._name, str(_NOTICE), str(self._deaths)),
                        *self._command,
                        ",".join(str(_FIRST_LOCK + number) for number in range(len(locks))),
                    ],
                    os.environ,
                    file_actions=[(os.POSIX_SPAWN_DUP2, copy, _NOTICE + number) for number, copy in enumerate(copies)],
                    setsid=True,
                )
            finally:
                for copy in copies:
                    os.close(copy)
        except OSError:
            os.close(self._notice)
            self._notice = None
            raise
        finally:
            os.close(read)
        self._held = locks
        if self._worked:
            self._tell(_WORKED)

    def _has_ended(self) -> bool:
        try:
            return self._pid is None or os.waitpid(self._pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            return True

    def _end(self) -> None:
        """Let the process end, and forget it."""
        self._tell(_ENDED)
        if self._notice is not None:
            os.close(self._notice)
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._pid, signal.SIGKILL)  # it may be suspended
                os.waitpid(self._pid, 0)
        self._pid = self._notice = None

    def _tell(self, word: bytes) -> None:
        if self._notice is not None:
            with contextlib.suppress(OSError):  # it is gone, too
                os.write(self._notice, word)


def main(arguments: Sequence[str]) -> None:
    """``python -I -S standby.py NAME DESCRIPTOR DEATHS COMMAND...``: wait, and then be the command, or end."""
    notice, deaths, command = int(arguments[1]), int(arguments[2]), [*arguments[3:]]
    words = b""
    while word := os.read(notice, 16):
        words += word
    if _ENDED in words:
        return
    deaths = 0 if _WORKED in words else deaths + 1
    if deaths > _PATIENT:
        time.sleep(min(2.0 ** (deaths - _PATIENT - 1), _LONGEST_DELAY))
    os.close(notice)
    os.lseek(0, 0, os.SEEK_SET)  # the description of the run, which the last agent has read
    os.execv(command[0], [*command, str(deaths)])  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
