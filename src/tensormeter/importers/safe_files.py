"""Reading of files that a source names, without leaving its folder."""

import os
import stat
from pathlib import Path

__all__ = ["UnsafePathError", "read_inside"]


class UnsafePathError(ValueError):
    """A file cannot be read: it is outside the folder, missing, too large, or not a regular file."""


def read_inside(folder: Path, name: str, limit: int) -> bytes:
    """Return the contents of a file below a folder. Links that lead out of the folder are not followed. Blocks on the disk.

    Args:
        folder: Folder of the source.
        name: Path of the file relative to the folder, from the source.
        limit: Maximum size in bytes.

    Raises:
        UnsafePathError: The file must not be read, is missing, or is larger than the limit. The message names the cause.
    """
    if not name or "\0" in name or os.path.isabs(name):
        raise UnsafePathError("its path is not relative")
    root = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(root, name))
    if os.path.commonpath([root, path]) != root:
        raise UnsafePathError("its path leads out of the folder")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise UnsafePathError(f"it cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnsafePathError("it is not a regular file")
    with open(descriptor, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UnsafePathError(f"it is larger than {limit >> 20} MiB")
    return data
