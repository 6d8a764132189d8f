"""Waiting for a lock that another process holds: not for ever, and with a word about who that is."""

import fcntl
import os
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

from tensormeter.disk.kernel_locks import list_locks
from tensormeter.errors import StoreError

__all__ = ["lock_holder", "note_holder", "wait_for_lock"]

_PAUSE: Final = 0.05


def wait_for_lock(descriptor: int, path: Path, seconds: float) -> None:
    """Take the exclusive `flock` of an open file.

    Args:
        descriptor: Of the file.
        path: Its name, for the error.
        seconds: How long to wait at most; 0: not at all.

    Raises:
        StoreError: Another process has held it all the time; the message names it, if it can be known.
        OSError: The file system has no locks.
    """
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StoreError(
                    f"{path} is locked by {lock_holder(path)}, for {seconds:g} s by now; end it, or try again later"
                ) from None
            pause.wait(_PAUSE)


def note_holder(descriptor: int) -> None:
    """Write this process's id into the file that it has locked, for systems that do not list locks."""
    with suppress(OSError):  # a full disk must not keep anybody from a lock
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def lock_holder(path: Path, kinds: Collection[str] = ("FLOCK",)) -> str:
    """Who holds a lock on a file: "process 4711", or "a process of unknown id".

    Args:
        path: The file.
        kinds: Of locks, as Linux calls them: FLOCK, POSIX, OFDLCK.
    """
    pid = _listed_holder(path, kinds)
    if pid is None and "FLOCK" in kinds:
        with suppress(OSError, ValueError):
            noted = int(path.read_text(encoding="ascii").split()[0]) if path.stat().st_size in range(1, 24) else 0
            os.kill(noted, 0) if noted > 0 else None
            pid = noted or None
    return "a process of unknown id" if pid is None else f"process {pid}"


def _listed_holder(path: Path, kinds: Collection[str]) -> int | None:
    """The id of the process that holds a lock on the file, as the kernel says it."""
    try:
        found = path.stat()
    except OSError:
        return None
    candidates = [
        (os.makedev(lock.major, lock.minor) == found.st_dev, lock.pid)
        for lock in list_locks()
        if lock.kind in kinds and lock.inode == found.st_ino
    ]
    # Some file systems have another device number there than in `stat`.
    return max(candidates)[1] if candidates else None
