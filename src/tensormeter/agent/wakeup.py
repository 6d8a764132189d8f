"""Waits of the agent that threads, signal handlers and the run's processes can end early.

Processes wake the agent through a named pipe in the run's private folder in shared memory. They do so only for events
that cannot wait, such as a flush, and while the agent sleeps but one of their lanes fills up (`HeaderWord.AGENT_SLEEPS`).
Each process keeps the pipe open, so waking the agent opens no file. If there is no such pipe, the agent looks at the rings
often instead.
"""

import contextlib
import os
import select
import stat
import weakref
from pathlib import Path
from typing import Final

from tensormeter.agent.run_directory.directory import RunDirectory

__all__ = ["Waker", "Wakeup"]

_MODE: Final = 0o600
_MOST_BYTES: Final = 1 << 12
_FLAGS: Final = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


class Wakeup:
    """Wait of one thread. Any thread or signal handler may call `wake`; only the waiting thread may call the rest."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        # Threads may call `wake` until the end, so the pipe stays open as long as the object.
        weakref.finalize(self, _close, self._read, self._write).atexit = False
        for descriptor in (self._read, self._write):
            os.set_blocking(descriptor, False)
        self._named: tuple[int, int] | None = None
        self._poll = select.poll()
        self._poll.register(self._read, select.POLLIN)

    def wake(self) -> None:
        """End the current wait, or else the next one."""
        with contextlib.suppress(BlockingIOError):  # the pipe is full, so the wait ends anyway
            os.write(self._write, b"\0")

    def wait(self, seconds: float) -> bool:
        """Wait for at most `seconds`, and return whether `wake` or a process ended the wait."""
        ready = self._poll.poll(max(0.0, seconds) * 1000)
        for descriptor, _ in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(descriptor, _MOST_BYTES)
        return bool(ready)

    def listen(self, directory: RunDirectory) -> bool:
        """Open the named pipe of a run, and create it if it is missing.

        Returns:
            False if the processes of the run cannot wake this thread.
        """
        path = directory.wake_pipe
        if self._named is not None and _is_at(path, self._named[0]):
            return True
        self.close()
        try:
            _make_pipe(directory)
            read = os.open(path, os.O_RDONLY | _FLAGS)
            try:
                write = os.open(path, os.O_WRONLY | _FLAGS)  # without a writer, `poll` returns at once
            except OSError:
                os.close(read)
                raise
        except OSError:
            return False
        self._named = (read, write)
        self._poll.register(read, select.POLLIN)
        return True

    def close(self) -> None:
        """Close the named pipe. `wake` keeps working."""
        if self._named is None:
            return
        self._poll.unregister(self._named[0])
        _close(*self._named)
        self._named = None


class Waker:
    """A process's end of the named pipe. Any thread or signal handler may use it, and a forked child the parent's."""

    def __init__(self, directory: RunDirectory) -> None:
        """Open the pipe, and create it if it is missing. If that fails, `wake` does nothing."""
        self._path = directory.wake_pipe
        self._pipe: tuple[int, os.stat_result] | None = None
        self._closed = False
        with contextlib.suppress(OSError):
            _make_pipe(directory)
            self._open()

    def wake(self) -> None:
        """Wake the agent if it listens. This does not block, and opens a file only if the pipe was deleted or closed."""
        if self._closed:
            return
        with contextlib.suppress(OSError):  # also if the pipe is full, so the agent will wake anyway
            descriptor = self._descriptor()
            os.write(self._open() if descriptor is None else descriptor, b"\0")

    def close(self) -> None:
        """Close the pipe. From then on, `wake` does nothing."""
        self._closed = True
        self._release()

    def _release(self) -> None:
        descriptor, self._pipe = self._descriptor(deleted=True), None
        if descriptor is not None:
            os.close(descriptor)

    def _open(self) -> int:
        self._release()
        descriptor = os.open(self._path, os.O_RDWR | _FLAGS)  # O_WRONLY would fail while no agent listens
        status = os.fstat(descriptor)
        if not stat.S_ISFIFO(status.st_mode):
            os.close(descriptor)
            raise FileExistsError(self._path)
        self._pipe = descriptor, status
        return descriptor

    def _descriptor(self, *, deleted: bool = False) -> int | None:
        """Return the descriptor of the open pipe. None if the program has closed it, or perhaps reused its number.

        Args:
            deleted: Whether to accept a pipe that no longer has a path.
        """
        if self._pipe is None:
            return None
        descriptor, opened = self._pipe
        try:
            status = os.fstat(descriptor)
        except OSError:
            return None
        return descriptor if os.path.samestat(status, opened) and (deleted or status.st_nlink) else None


def _make_pipe(directory: RunDirectory) -> None:
    path = directory.wake_pipe
    directory.make_ring_directory(path.parent)
    if not _is_pipe(path):
        path.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):  # another process has just created it
            os.mkfifo(path, _MODE)
            path.chmod(_MODE)  # under any umask


def _is_pipe(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISFIFO(status.st_mode) and status.st_uid == os.geteuid()


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether a path leads to the open pipe."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except OSError:
        return False


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
