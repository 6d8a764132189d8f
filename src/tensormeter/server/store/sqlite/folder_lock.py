"""A lock on a data folder, so that one server at a time uses it."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from tensormeter.disk.locks import lock_holder, note_holder, wait_for_lock
from tensormeter.disk.private import make_directory, open_file
from tensormeter.errors import StoreError
from tensormeter.server.store.sqlite.disk.filesystem_trial import lacks_locks

__all__ = ["FolderLock"]

_NO_FOLDER: Final = frozenset({errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
"""Errors of a path that is no folder, or no folder of this user."""


class FolderLock:
    """Held from construction until `release` or the end of the process, however it ends.

    `flock` and not `lockf`: the latter does not tell two stores of one process from each other, and drops the lock
    when anything else in the process closes the file.
    """

    def __init__(self, folder: Path) -> None:
        """Create the folder if need be (private to the user) and lock it.

        Raises:
            StoreError: Another process holds it, which the message names; or the folder cannot be written to, or files in it
                cannot be locked.
        """
        path = folder / "lock"
        try:
            make_directory(folder)
            self._descriptor = open_file(path)
        except OSError as error:
            advice = "choose another one" if error.errno in _NO_FOLDER else "see its disk"
            raise StoreError(f"cannot use the data folder {folder}: {error.strerror}; {advice}") from error
        try:
            taken = wait_for_lock(self._descriptor)
        except OSError as error:
            os.close(self._descriptor)
            raise StoreError(lacks_locks(folder, error)) from error
        if not taken:
            os.close(self._descriptor)
            raise StoreError(
                f"the data folder {folder} is in use by {lock_holder(path)}; stop that server or choose another folder",
            )
        note_holder(self._descriptor)

    def release(self) -> None:
        """Let the next one have the folder. The file stays: removing it would race with whoever opens it now."""
        with suppress(OSError):  # the lock is released although the disk fails
            os.close(self._descriptor)
