"""File locks: acquiring them, waiting for them, and finding the processes that hold them.

The locks are `flock` locks, which belong to an open file description. They survive exec in a child that inherits the
descriptor, exclude each other even within one process, and end with the process, however it ends.
"""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from tensormeter.disk.kernel_locks import list_locks
from tensormeter.disk.private import oddity, open_file
from tensormeter.logger import get_logger

__all__ = ["holder", "lock_holder", "locked", "note_holder", "try_lock", "unlock", "wait_for_lock"]

logger: Final = get_logger()

_PATIENCE: Final = 5.0
_PAUSE: Final = 0.01
_LONGEST_ID: Final = 24
"""Exclusive upper bound on the size of a file that contains only a process ID, in bytes."""


def wait_for_lock(descriptor: int, seconds: float = 0.0) -> bool:
    """Acquire the exclusive lock on an open file.

    Args:
        descriptor: Descriptor of the file.
        seconds: Maximum seconds to wait for other holders; 0 to return immediately.

    Returns:
        Whether the lock was acquired.

    Raises:
        OSError: The file system does not support locks.
    """
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            pause.wait(_PAUSE)
        else:
            return True


def unlock(descriptor: int) -> None:
    """Release a lock for all processes that share the open file. After a fork, closing the file is not enough."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextlib.contextmanager
def locked(path: Path, patience: float = _PATIENCE) -> Iterator[None]:
    """Hold a lock during the block. If it is not free after `patience` seconds, warn and continue without it.

    Processes hold the lock only briefly, so the wait fails only if the holder is stopped (by SIGSTOP or a frozen disk).
    At worst, a second agent starts, finds the first agent's lock and exits.

    Raises:
        OSError: The file cannot be created, or its file system does not support locks.
    """
    descriptor = _open(path)
    try:
        if not wait_for_lock(descriptor, patience):
            logger.warning(
                "waited %.0f s for %s, which is locked%s; continuing without the lock", patience, path, holder(path)
            )
        yield
    finally:
        unlock(descriptor)
        os.close(descriptor)


def try_lock(path: Path) -> int | None:
    """Acquire a lock if no process holds it.

    Returns:
        Descriptor that holds the lock, even after exec in a child that inherits it; None if the lock is held.

    Raises:
        OSError: The file cannot be created, or its file system does not support locks.
    """
    while True:
        descriptor = _open(path)
        try:
            if not wait_for_lock(descriptor):
                os.close(descriptor)
                return None
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the holder deleted the file meanwhile; there may be a new one


def note_holder(descriptor: int) -> None:
    """Write this process's ID into a file that it has locked, because some systems do not list locks."""
    with contextlib.suppress(OSError):  # a full disk must not prevent a lock
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def holder(*paths: Path) -> str:
    """Return the other processes that hold any kind of lock on these files, in the form " by process 123".

    Processes on other machines and in other containers are not included. The result is empty if the system lists no
    holders.
    """
    pids = {pid for path in paths for _, pid in _listed(path)} - {os.getpid()}
    return f" by process {', '.join(map(str, sorted(pids)))}" if pids else ""


def lock_holder(path: Path, kinds: Collection[str] = ("FLOCK",)) -> str:
    """Return the process that holds a lock on a file, such as "process 4711", or "an unknown process".

    Args:
        path: Path of the file.
        kinds: Kinds of locks to consider, as named by Linux: FLOCK, POSIX, OFDLCK.
    """
    candidates = _listed(path, kinds)
    # Prefer a lock whose device matches. On some file systems, the listed number differs from the one in `stat`.
    pid = max(candidates)[1] if candidates else None
    if pid is None and "FLOCK" in kinds:
        with contextlib.suppress(OSError, ValueError):
            stored_pid = (
                int(path.read_text(encoding="ascii").split()[0]) if 0 < path.stat().st_size < _LONGEST_ID else 0
            )
            os.kill(stored_pid, 0) if stored_pid > 0 else None
            pid = stored_pid or None
    return "an unknown process" if pid is None else f"process {pid}"


def _listed(path: Path, kinds: Collection[str] | None = None) -> list[tuple[bool, int]]:
    """Return the holders of locks on a file, as (whether the listed device is the file's device, process ID)."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [
        (os.makedev(lock.major, lock.minor) == status.st_dev, lock.pid)
        for lock in list_locks()
        if lock.inode == status.st_ino and (kinds is None or lock.kind in kinds)
    ]


def _open(path: Path) -> int:
    """Open a lock file.

    Raises:
        OSError: The file cannot be opened, or is not a regular file. In the latter case, the message contains the
            remedy.
    """
    if reason := oddity(path):
        raise OSError(reason)
    return open_file(path)
