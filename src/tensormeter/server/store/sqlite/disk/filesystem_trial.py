"""The capabilities of the data folder's file system, which the server tests at startup.

Network and cloud file systems may lack features that SQLite needs. Without shared memory maps, the store uses a
rollback journal instead of a write-ahead log. Without `fsync`, the store does not sync. Without locks, two servers
could damage the store, so the server does not start.
"""

import errno
import fcntl
import logging
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tensormeter.disk.private import open_file
from tensormeter.errors import StoreError
from tensormeter.server.store.models.errors import StoreFullError

__all__ = ["FULL", "FileSystem", "lacks_locks"]

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error codes of a full file system or an exhausted user quota."""

_LACKING: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENODEV, errno.ENOTTY})
"""Error codes for operations that a file system does not support. Other errors may be temporary."""

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileSystem:
    """Capabilities of a file system.

    Attributes:
        maps: Whether processes can share memory by mapping a file.
        syncs: Whether files can be synced to disk.
    """

    maps: bool = True
    syncs: bool = True

    @classmethod
    def examine(cls, folder: Path) -> "FileSystem":
        """Test a folder's file system with a small file, and warn about missing capabilities. Blocks on the disk.

        Raises:
            StoreFullError: The disk has no space for the file.
            StoreError: The folder cannot be used, or the file system does not support locks.
        """
        path = folder / "probe"
        try:
            descriptor = open_file(path)
            try:
                os.ftruncate(descriptor, mmap.PAGESIZE)
                _lock(descriptor, folder)
                filesystem = cls(_maps(descriptor), _syncs(descriptor))
            finally:
                os.close(descriptor)
                path.unlink(missing_ok=True)
        except OSError as error:
            if error.errno in FULL:
                raise StoreFullError(
                    f"the disk of {folder} is full ({error.strerror}); free some space, then start the server again"
                ) from error
            raise StoreError(f"cannot write to the data folder {folder}: {error.strerror}; check its disk") from error
        filesystem._warn(folder)
        return filesystem

    @property
    def synchronous(self) -> str:
        """Value of SQLite's `synchronous` setting."""
        return "NORMAL" if self.syncs else "OFF"

    @property
    def journal_mode(self) -> str:
        """Value of SQLite's `journal_mode` setting."""
        return "WAL" if self.maps else "TRUNCATE"

    @property
    def patience(self) -> float:
        """Seconds to wait for a lock. With a rollback journal, commits and reads block each other."""
        return 5.0 if self.maps else 60.0

    def _warn(self, folder: Path) -> None:
        if not self.maps:
            _log.warning(
                "tensormeter: the file system of %s has no shared memory maps, so the store uses a rollback journal, "
                "which is slower; use a local disk",
                folder,
            )
        if not self.syncs:
            _log.warning(
                "tensormeter: the file system of %s cannot sync files, so a power failure may damage the store; use "
                "a local disk",
                folder,
            )


def lacks_locks(folder: Path, error: OSError) -> str:
    """Return the error message for a file system without locks."""
    return (
        f"the file system of {folder} has no file locks ({error.strerror}), so another server could damage the store; "
        "use a local disk (for NFS: mount it with locks)"
    )


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _LACKING:
            raise StoreError(lacks_locks(folder, error)) from error
        raise


def _maps(descriptor: int) -> bool:
    try:
        mmap.mmap(descriptor, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()
    except OSError as error:
        if error.errno in _LACKING:
            return False
        raise
    return True


def _syncs(descriptor: int) -> bool:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in _LACKING:
            return False
        raise
    return True
