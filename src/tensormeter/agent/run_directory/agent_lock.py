"""The lock that an agent holds on its run.

It is a file in the run's directory and one in shared memory, next to the rings. An agent holds both; where one of them cannot be
locked (a disk that fails, or has no locks; a machine without shared memory), it holds the other one. It runs only if no other
process holds either, so two agents at once are impossible as long as one of the files can be locked. The one in shared memory can
be looked at though the disk hangs.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tensormeter.agent.run_directory.directory import RunDirectory
from tensormeter.disk.locks import unlock

__all__ = ["AgentLock"]

_CONTENT: Final = 64
"""Bytes of the files' content: a process id."""


class AgentLock:
    """The locks that one agent holds, as descriptors. Used by one thread at a time; `complete` blocks for the disk."""

    def __init__(self, directory: RunDirectory, descriptors: Sequence[int]) -> None:
        """
        Args:
            directory: The run's directory.
            descriptors: Descriptors that hold one of the locks, or both.
        """
        self._directory = directory
        self._descriptors = list(descriptors)

    @property
    def descriptors(self) -> list[int]:
        """The descriptors that hold the locks."""
        return self._descriptors.copy()

    def complete(self) -> bool:
        """Take the locks that are not held yet, as far as they can be taken.

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
            with contextlib.suppress(OSError):  # a lock that is held, on a disk that takes no more
                os.pwrite(descriptor, content, 0)
        return True

    def write(self, pid: int) -> None:
        """Write the process id of the agent: from now on it may be sent signals."""
        for descriptor in self._descriptors:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{pid}\n".encode(), 0)

    def release(self) -> None:
        """Give the locks up, for every process that has inherited the descriptors."""
        for descriptor in self._descriptors:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
            with contextlib.suppress(OSError):
                unlock(descriptor)
        self.close()

    def close(self) -> None:
        """Close the descriptors; processes that have inherited them keep the locks."""
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
