"""A lock on a data folder, so that one server at a time uses it."""

import fcntl
import os
from pathlib import Path

from tensormeter.errors import StoreError

__all__ = ["FolderLock"]


class FolderLock:
    """Held from construction until `release` or the end of the process, however it ends.

    `flock` and not `lockf`: the latter does not tell two stores of one process from each other, and drops the lock
    when anything else in the process closes the file.
    """

    def __init__(self, folder: Path) -> None:
        """Create the folder if need be (private to the user) and lock it.

        Raises:
            StoreError: Another process holds it, which the message names; or the folder cannot be written to.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"cannot use the data folder {folder}: {error.strerror}; choose another one") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(self._descriptor, 20).decode("ascii", "replace").strip() or "of unknown id"
            os.close(self._descriptor)
            raise StoreError(
                f"the data folder {folder} is in use by process {holder}; stop that server or choose another folder",
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let the next one have the folder. The file stays: removing it would race with whoever opens it now."""
        os.close(self._descriptor)
