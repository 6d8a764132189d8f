"""The file locks that Linux lists in `/proc/locks`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["KernelLock", "list_locks"]

_LOCKS: Final = Path("/proc/locks")


class KernelLock(NamedTuple):
    """A file lock that a process holds.

    Attributes:
        kind: Kind of the lock: FLOCK, POSIX or OFDLCK.
        pid: Process ID of the holder.
        major: Major number of the file's device. On some file systems, it differs from the one in `stat`.
        minor: Minor number of the file's device, with the same limitation.
        inode: Inode of the file.
    """

    kind: str
    pid: int
    major: int
    minor: int
    inode: int


def list_locks() -> Iterator[KernelLock]:
    """Yield the locks that processes hold, but not those that they are waiting for.

    Processes on other machines and in other containers are not included. Some systems list no locks at all.
    """
    try:
        lines = _LOCKS.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        # 1: FLOCK ADVISORY WRITE 123 08:01:456 0 EOF. Lines with an arrow describe waiting processes.
        words = line.split()
        if len(words) < 6 or "->" in words:
            continue
        try:
            major, minor, inode = words[5].split(":")
            lock = KernelLock(words[1], int(words[4]), int(major, 16), int(minor, 16), int(inode))
        except ValueError:
            continue
        if lock.pid > 0:
            yield lock
