"""Unreadable rings, which are renamed so that no agent tries to read them again."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tensormeter.errors import SpoolError
from tensormeter.ring.file import is_of_another_version, is_written, media_directory

__all__ = ["find_damaged_rings", "put_ring_aside"]

_SUFFIX: Final = ".damaged"
"""Suffix for the name of an unreadable ring whose process is gone."""


def find_damaged_rings(folders: Iterable[Path]) -> list[Path]:
    """Return the damaged rings in some folders that `put_ring_aside` renamed."""
    return [path for folder in folders for path in folder.glob(f"*{_SUFFIX}")]


def put_ring_aside(path: Path, error: Exception) -> int:
    """Rename a damaged ring if its process is gone.

    Args:
        path: Path of the ring.
        error: Error that reading the ring caused.

    Returns:
        Number of items known to be lost with the ring; 0 if the ring is not renamed, because another agent may be able
        to read it.
    """
    is_transient = isinstance(error, OSError | MemoryError | SpoolError) or isinstance(error.__cause__, OSError)
    if is_transient or is_of_another_version(path) or is_written(path.resolve()):
        return 0
    try:
        pieces = len(list(media_directory(path).iterdir()))
    except OSError:
        pieces = 0
    try:
        path.rename(path.with_name(f"{path.name}{_SUFFIX}"))
    except OSError:
        return 0
    return 1 + pieces
