"""Functions that sync files and their names to the disk, so that both survive a power failure.

To sync a file's content, sync the file. To sync its name, sync the folder that contains it. Any thread may call these
functions, which block on the disk.
"""

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import Final

__all__ = ["REFUSALS", "fsync", "fsync_file", "fsync_folder", "fsync_names"]

REFUSALS: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
"""Error numbers of file systems that do not support syncing, as opposed to those of failing disks."""

_FULL_FSYNC: Final[int | None] = getattr(fcntl, "F_FULLFSYNC", None)
"""Command that also flushes the disk's cache on macOS, which `fsync` does not; None on other systems."""


def fsync(descriptor: int) -> None:
    """Sync an open file, and return when its content is on the disk.

    Raises:
        OSError: The disk failed, or the file system does not support syncing (see `REFUSALS`).
    """
    if _FULL_FSYNC is not None:
        try:
            fcntl.fcntl(descriptor, _FULL_FSYNC)
        except OSError:  # not supported by every file system
            pass
        else:
            return
    os.fsync(descriptor)


def fsync_file(path: Path) -> None:
    """Sync a file by its path.

    Do not use this for SQLite databases: closing the file would release this process's locks on it.

    Raises:
        OSError: As for `fsync`, or the file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Sync the names in a folder.

    File systems that cannot sync folders are assumed to make names durable by themselves.

    Raises:
        OSError: The disk failed, or the folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fsync(descriptor)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
    finally:
        os.close(descriptor)


def fsync_names(folder: Path) -> None:
    """Sync the names in a folder and in its parents, up to the root of the file system.

    Parents that this user cannot open are skipped, because this user did not create them.

    Raises:
        OSError: The folder itself cannot be synced.
    """
    folder = folder.resolve()
    fsync_folder(folder)
    device = folder.stat().st_dev
    for above in folder.parents:
        with contextlib.suppress(OSError):
            if above.stat().st_dev != device:
                return
            fsync_folder(above)
