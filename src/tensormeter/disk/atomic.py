"""Atomic replacement of files: write a temporary file next to the target, optionally sync it, and rename it.

A reader sees either the old or the new content, even if the writer was killed. Any thread may call these functions,
which block on the disk.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from tensormeter.disk.fsync import fsync
from tensormeter.disk.private import open_file

__all__ = ["replacing", "write_file"]

_READABLE: Final = 0o666


def write_file(path: Path, *pieces: str | bytes, sync: bool = False) -> None:
    """Write a file that only this user may read, without following links.

    Only one process may write the file at a time. If the process is killed, the next write overwrites its temporary
    file.

    Args:
        path: Path of the target.
        pieces: Pieces of the content, in order; strings are encoded as UTF-8.
        sync: Whether to sync the content to the disk before the target is replaced.

    Raises:
        OSError: The file cannot be written. The target is unchanged.
    """
    temporary = path.with_name(f"{path.name}.new")
    descriptor = open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with _renamed(descriptor, temporary, path, sync=sync) as file:
        for piece in pieces:
            file.write(piece.encode() if isinstance(piece, str) else piece)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that is synced and then replaces the target when the block ends.

    If the block raises an exception, the temporary file is removed. Several processes may write the same target; the
    last one wins. The umask determines the file's mode, as for any new file.

    Raises:
        OSError: The file cannot be written. The target is unchanged.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    with _renamed(descriptor, Path(name), path, sync=True) as file:
        yield file
        mask = os.umask(0)
        os.umask(mask)
        os.fchmod(descriptor, _READABLE & ~mask)  # `mkstemp` creates private files


@contextlib.contextmanager
def _renamed(descriptor: int, temporary: Path, path: Path, *, sync: bool) -> Iterator[IO[bytes]]:
    try:
        with open(descriptor, "wb") as file:
            yield file
            if sync:
                file.flush()
                fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
