"""Reading of files that an import's source refers to. Files outside the source's folder are never read."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from tensormeter.importers.registry import SourceError

__all__ = ["ConfinedFolder", "FileEntry", "FileTooLargeError"]

_DEEPEST: Final = 32


class FileTooLargeError(SourceError):
    """A file is larger than the caller permits."""


class FileEntry(NamedTuple):
    """A file of a folder, by its path relative to the folder, with slashes, and its size in bytes."""

    path: str
    size: int


class ConfinedFolder:
    """A folder whose files are read by relative paths. Paths and links that lead out of it are refused."""

    def __init__(self, root: Path) -> None:
        """
        Args:
            root: The folder. It may be reached through links.
        """
        self.root = root
        self._real = Path(os.path.realpath(root))

    def folder(self, path: str) -> "ConfinedFolder":
        """Return a folder in this one.

        Raises:
            SourceError: The path leads out of this folder.
        """
        return ConfinedFolder(self.locate(path))

    def folders(self, path: str = ".") -> list[str]:
        """Return the names of the folders in a folder, sorted; none if it cannot be read. Links are not included."""
        try:
            with os.scandir(self.locate(path)) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except (OSError, SourceError):
            return []

    def has(self, path: str) -> bool:
        """Return whether a path in this folder is a regular file."""
        try:
            return self.locate(path).is_file()
        except (OSError, SourceError):
            return False

    def files(self, at_most: int) -> Iterator[FileEntry]:
        """Yield regular files at any depth up to 32, in the order of their paths. Links are not followed.

        Args:
            at_most: Number of files after which the listing ends.
        """
        waiting, count = [PurePosixPath()], 0
        while waiting and count < at_most:
            folder = waiting.pop()
            try:
                entries = sorted(os.scandir(self._real / folder), key=lambda entry: entry.name)
            except OSError:
                continue
            folders = []
            for entry in entries:
                path = folder / entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.is_file(follow_symlinks=False) and count < at_most:
                    count += 1
                    yield FileEntry(str(path), entry.stat(follow_symlinks=False).st_size)
            if len(folder.parts) < _DEEPEST:
                waiting += reversed(folders)

    def locate(self, path: str) -> Path:
        """Return the place of a file or folder.

        Raises:
            SourceError: The path leads out of the folder, or is invalid.
        """
        relative = path.replace("\\", "/")
        if not relative or "\0" in relative:
            raise SourceError(f"the path {path[:200]!r} is invalid")
        place = Path(os.path.realpath(self._real / relative))
        if not place.is_relative_to(self._real):
            raise SourceError(f"the path {path[:200]!r} leads out of {self.root}")
        return place

    def read(self, path: str, limit: int) -> bytes:
        """Return the contents of a regular file.

        Args:
            path: Path relative to the folder.
            limit: Maximum size in bytes.

        Raises:
            FileTooLargeError: The file is larger.
            SourceError: The file is missing or not a regular file, or its path leads out of the folder.
        """
        place = self.locate(path)
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise SourceError(f"{path[:200]!r} is not a regular file")
            with open(descriptor, "rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise SourceError(f"cannot read {path[:200]!r}: {error.strerror or error}") from None
        if len(data) > limit:
            raise FileTooLargeError(f"{path[:200]!r} is larger than {limit:,} bytes")
        return data
