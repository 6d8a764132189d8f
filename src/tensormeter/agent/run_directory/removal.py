"""Removal of runs and rings.

In folders whose contents others may have prepared, only files that tensormeter creates are removed. Every file is
removed by its name inside an open folder, so a link, or a folder that is swapped in meanwhile, cannot redirect the
removal.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tensormeter.disk.private import fault
from tensormeter.logger import get_logger

__all__ = ["REMOVED", "remove_rings", "remove_run"]

logger: Final = get_logger("tensormeter.agent")

REMOVED: Final = ".removed-"
"""Prefix for the name of a folder that is being removed."""

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RUN_FILES: Final = re.compile(
    r"run\.json(\.new)?|agent\.(lock|log)|(attempts\.json|alive)(\.new)?|reserve|spool\.sqlite(\.damaged-\d+)?(-wal|-shm|-journal)?"
)
_RING_FILES: Final = re.compile(r".+\.(ring|ring\.damaged|names|config|documents|console|lock|new)")
_PIPES: Final = re.compile(r"agent\.wake")
_MEDIA_FILES: Final = re.compile(r"\d+(\.new|\.slow)?")
_STATE_FILES: Final = re.compile(
    r"(appended|journal|names|outgoing)\.(json|new|json\.new|json\.damaged)|cumulative\.pb(\.new)?|\d+\.request"
)
_MEDIA: Final = ".media"


def remove_rings(folder: Path) -> None:
    """Remove the ring files from a folder in shared memory, and the folder itself if nothing else is in it.

    A folder that others can write to is left alone.
    """
    if not os.path.lexists(folder):
        return
    if reason := fault(folder.parent) or fault(folder):
        logger.warning("cannot remove %s: %s", folder, reason)
        return
    with contextlib.suppress(OSError), _opened(folder) as descriptor:
        if os.fstat(descriptor).st_uid == os.geteuid():  # the folder may have been replaced meanwhile
            _remove_ring_files(descriptor)
    with contextlib.suppress(OSError):
        folder.rmdir()


def remove_run(path: Path, *, whole: bool) -> None:
    """Remove a run's folder.

    Args:
        path: Path of the folder.
        whole: Whether to remove everything in it. If not, only files that tensormeter creates are removed, and a folder
            that contains anything else is kept, with a warning.

    Raises:
        OSError: The folder cannot be removed.
    """
    if not whole:
        _remove_known(path)
        return
    # Rename first, so that a half-deleted folder is never taken for a run. `RunDirectory.create` deletes any remains.
    before = path.lstat()
    removed = path.with_name(f"{REMOVED}{path.name}-{time.time_ns()}")
    try:
        path.rename(removed)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EPERM, errno.EXDEV):
            raise
        _remove_known(path)  # the file system cannot rename folders
        return
    if not os.path.samestat(before, removed.lstat()):
        removed.rename(path)
        raise OSError(f"{path} was replaced while it was being removed; it is still there")
    # This follows no links. Errors are ignored, because network file systems keep open files under other names.
    shutil.rmtree(removed, ignore_errors=True)


def _remove_known(path: Path) -> None:
    with _opened(path) as descriptor:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            os.unlink("run.json", dir_fd=descriptor)  # first, so that the remaining files are never taken for a run
        _remove_files(descriptor, _RUN_FILES)
        _remove_folder("rings", descriptor, _remove_ring_files)
        _remove_folder("exporters", descriptor, _remove_states)
        left = os.listdir(descriptor)
    if left:
        shown = ", ".join(map(repr, sorted(left)[:5]))
        logger.warning("kept %s, because it contains files that tensormeter did not create: %s", path, shown)
        return
    try:
        path.rmdir()
    except OSError as error:
        logger.warning("%s is empty, but cannot be removed: %s", path, error.strerror)


def _remove_ring_files(descriptor: int) -> None:
    for name in _names(descriptor, stat.S_ISDIR):
        if name.endswith(_MEDIA):
            _remove_folder(name, descriptor, lambda media: _remove_files(media, _MEDIA_FILES))
    _remove_files(descriptor, _RING_FILES)
    _remove_files(descriptor, _PIPES, stat.S_ISFIFO)


def _remove_states(descriptor: int) -> None:
    for name in _names(descriptor, stat.S_ISDIR):
        _remove_folder(name, descriptor, lambda state: _remove_files(state, _STATE_FILES))


def _remove_folder(name: str, parent: int, empty: Callable[[int], None]) -> None:
    """Empty a folder with `empty`, and remove the folder if nothing is left in it."""
    with contextlib.suppress(OSError), _opened(name, parent) as descriptor:
        empty(descriptor)
        os.rmdir(name, dir_fd=parent)


def _remove_files(descriptor: int, names: re.Pattern[str], kind: Callable[[int], bool] = stat.S_ISREG) -> None:
    for name in _names(descriptor, kind):
        if names.fullmatch(name):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=descriptor)


def _names(descriptor: int, kind: Callable[[int], bool]) -> Iterator[str]:
    for name in os.listdir(descriptor):
        with contextlib.suppress(OSError):
            if kind(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
                yield name


@contextlib.contextmanager
def _opened(path: str | Path, parent: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, _OPEN, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
