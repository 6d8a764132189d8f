"""The lock that an agent holds on its run.

The lock consists of two files: one in the run's directory, and one in shared memory next to the rings. An agent
normally locks both. It locks only one of them on a machine without shared memory, or if the disk fails or does not
support locks. An agent runs only if no other process holds either file. As long as one of the files can be locked, two
agents can therefore never run at the same time. The file in shared memory can be checked even while the disk hangs.

The file in the run's directory is empty while the lock is held by a process that is not an agent, or by an agent that
is ending. A new agent waits for such a process to end, because nothing else may start an agent later.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tensormeter.agent.run_directory.directory import RunDirectory
from tensormeter.disk.locks import unlock

__all__ = ["MARK", "AgentLock"]

MARK: Final = b"agent\n"
"""Content of the lock files while an agent that holds them has not written its process ID, or runs on a thread."""

_CONTENT: Final = 64
"""Maximum size of the lock files' content in bytes. They contain a process ID."""


class AgentLock:
    """Descriptors that hold one agent's locks. Only one thread at a time may use it; `complete` blocks on the disk."""

    def __init__(self, directory: RunDirectory, descriptors: Sequence[int]) -> None:
        """
        Args:
            directory: Directory of the run.
            descriptors: Descriptors that hold one or both of the locks; none if `acquire` is called.
        """
        self._directory = directory
        self._descriptors = list(descriptors)

    @property
    def descriptors(self) -> list[int]:
        """Descriptors that hold the locks."""
        return self._descriptors.copy()

    def acquire(self) -> bool:
        """Acquire the lock in the run's directory. This blocks on the disk.

        Returns:
            False if another process holds it.

        Raises:
            OSError: The file cannot be opened or locked.
        """
        descriptor = self._directory.try_agent_lock()
        if descriptor is None:
            return False
        self._descriptors.append(descriptor)
        return True

    def complete(self) -> bool:
        """Acquire the locks that are not held yet, as far as possible.

        Returns:
            False if another process holds one of them.
        """
        content = self._content()
        for path, take in (
            (self._directory.memory_lock, self._directory.try_memory_lock),
            (self._directory.agent_lock, self._directory.try_agent_lock),
        ):
            if path is None or self._holds(path):
                continue
            try:
                descriptor = take()
            except OSError:
                continue
            if descriptor is None:
                return False
            self._descriptors.append(descriptor)
            with contextlib.suppress(OSError):  # the lock is held even if the disk accepts no more data
                os.pwrite(descriptor, content, 0)
        return True

    def write(self, pid: int | None) -> None:
        """Write the agent's process ID into the lock files; None if it runs on a thread.

        From then on, others may send signals to the process.
        """
        for descriptor in self._descriptors:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, MARK if pid is None else f"{pid}\n".encode(), 0)

    def release(self) -> None:
        """Release the locks, even if other processes have inherited the descriptors."""
        for descriptor in self._descriptors:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
            with contextlib.suppress(OSError):
                unlock(descriptor)
        self.close()

    def close(self) -> None:
        """Close the descriptors. Processes that have inherited them keep the locks."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _holds(self, path: Path | None) -> bool:
        if path is None:
            return False
        try:
            status = path.lstat()
        except OSError:
            return False
        return any(os.path.samestat(status, os.fstat(descriptor)) for descriptor in self._descriptors)

    def _content(self) -> bytes:
        for descriptor in self._descriptors:
            with contextlib.suppress(OSError):
                return os.pread(descriptor, _CONTENT, 0)
        return b""
