"""Making files, and the names that lead to them, survive a loss of power.

A file's content and its name are synced apart: the content by the file, the name by the folder that holds it.
Any thread; every call blocks for the disk.
"""

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import Final

__all__ = ["REFUSALS", "fsync", "fsync_file", "fsync_folder", "fsync_names"]

REFUSALS: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
"""Errors of file systems that cannot sync, as opposed to disks that fail to."""

_FULL_FSYNC: Final[int | None] = getattr(fcntl, "F_FULLFSYNC", None)
"""On macOS `fsync` leaves data in the disk's own cache."""


def fsync(descriptor: int) -> None:
    """Return when the disk has what was written to an open file.

    Raises:
        OSError: It failed, or the file system cannot do it (see `REFUSALS`).
    """
    if _FULL_FSYNC is not None:
        try:
            fcntl.fcntl(descriptor, _FULL_FSYNC)
        except OSError:  # not on every file system
            pass
        else:
            return
    os.fsync(descriptor)


def fsync_file(path: Path) -> None:
    """Sync a file by its path. Do not use it for a SQLite database: closing one gives up this process's locks on it.

    Raises:
        OSError: As for `fsync`, or the file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Sync the names in a folder. File systems that cannot do that for folders alone are taken to keep names by themselves.

    Raises:
        OSError: It failed, or the folder cannot be opened.
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
    """Sync the names in a folder and those of the folders that lead to it, up to where its file system begins.

    Folders above it that this user may not open were not made by this user, and are passed over.

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
