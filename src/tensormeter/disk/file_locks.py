"""Waiting for a lock on a file, and finding the process that holds it."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Final

from tensormeter.disk.kernel_locks import list_locks
from tensormeter.disk.private import oddity, open_file
from tensormeter.logger import get_logger

__all__ = ["holder", "locked", "try_lock"]

logger: Final = get_logger()

_PATIENCE: Final = 5.0
_INTERVAL: Final = 0.01


@contextlib.contextmanager
def locked(path: Path, patience: float = _PATIENCE) -> Iterator[None]:
    """Hold a lock. After `patience` seconds without it, warn and go on without.

    Holders do nothing slow, so the deadline is only met when one is stopped (SIGSTOP, a frozen disk), and then
    the worst that happens is a second agent, which finds the first one's lock and leaves.

    Raises:
        OSError: The file cannot be made, or files cannot be locked there.
    """
    descriptor = _open(path)
    try:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    logger.warning(
                        "waited %.0f s for %s, which is locked%s; going on without", patience, path, holder(path)
                    )
                    break
                Event().wait(_INTERVAL)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough: a child forked meanwhile has it open as well
        os.close(descriptor)


def try_lock(path: Path) -> int | None:
    """Take a lock if nobody holds it.

    Returns:
        A descriptor whose open file description holds the lock, also over exec in a child that inherits it; or None.

    Raises:
        OSError: The file cannot be made, or files cannot be locked there.
    """
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has deleted it meanwhile: there is another one, or none


def _open(path: Path) -> int:
    """Open the file of a lock.

    Raises:
        OSError: It cannot be opened, or is something else than a file; then the message says what to do.
    """
    if reason := oddity(path):
        raise OSError(reason)
    return open_file(path)


def holder(*paths: Path) -> str:
    """The processes that hold locks on these files, as " by process 123"; "" where the system does not say.

    Processes of other machines and of other containers are not known.
    """
    files = set()
    for path in paths:
        with contextlib.suppress(OSError):
            files.add(path.stat().st_ino)
    found = {lock.pid for lock in list_locks() if lock.inode in files}
    found.discard(os.getpid())
    return f" by process {', '.join(map(str, sorted(found)))}" if found else ""
