"""A lock on the data folder, so that only one server at a time can use it."""

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
"""Error codes for a path that is not a folder or that this user may not use."""


class FolderLock:
    """A lock that is held from construction until `release` or the end of the process, even by SIGKILL.

    It uses `flock`, because a `lockf` lock would not exclude a second store in the same process, and would be released
    when any code in the process closes the file.
    """

    def __init__(self, folder: Path) -> None:
        """Create the folder if needed, accessible only to this user, and lock it.

        Raises:
            StoreError: Another process, named in the message, holds the lock; the folder is not writable; or the
                folder's file system does not support locks.
        """
        path = folder / "lock"
        try:
            make_directory(folder)
            self._descriptor = open_file(path)
        except OSError as error:
            advice = "choose another one" if error.errno in _NO_FOLDER else "check its disk"
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
        """Release the lock but keep its file. Removing the file would race with a process that is opening it."""
        with suppress(OSError):  # the lock is released even if the disk reports an error
            os.close(self._descriptor)
