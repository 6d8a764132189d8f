"""Size and digest of an artifact, which is a file or a folder. Its contents never leave the machine."""

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["DIGEST_RATE", "Listing", "NoDigestError", "digest", "list_files"]

DIGEST_RATE: Final = 100 << 20
"""Maximum bytes per second to read for digests, so that they leave the disk to the training."""

_CHUNK: Final = 1 << 20
_MOST_FILES: Final = 100_000


class NoDigestError(Exception):
    """An artifact has no digest. The message says why."""


@dataclass(frozen=True)
class File:
    """A regular file of an artifact.

    Attributes:
        name: Path relative to the artifact, with `/` between folders; "" if the artifact is a file.
        version: Device, inode, size and time of modification, which a change of the file changes.
    """

    name: str
    version: tuple[int, int, int, int]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.version[2]


@dataclass(frozen=True)
class Listing:
    """Files of an artifact, sorted by the bytes of their names."""

    is_folder: bool
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        """Total size of the files in bytes."""
        return sum(file.size for file in self.files)


def list_files(path: str) -> Listing:
    """List the files of an artifact. Blocks on the disk.

    Links to files count as files; links to folders are not followed, except for the artifact itself.

    Raises:
        NoDigestError: There is no such file or folder, it cannot be read, or it has too many files.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            if not stat.S_ISREG(status.st_mode):
                raise NoDigestError("it is neither a file nor a folder")
            return Listing(False, (File("", _version(status)),))
        files = []
        for file in _walk(path):
            files.append(file)
            if len(files) > _MOST_FILES:
                raise NoDigestError(f"the folder has more than {_MOST_FILES:,} files")
    except FileNotFoundError:
        raise NoDigestError("it does not exist") from None
    except OSError as error:
        raise NoDigestError(f"it cannot be read ({error.strerror})") from None
    return Listing(True, tuple(sorted(files, key=lambda file: os.fsencode(file.name))))


def digest(path: str, listing: Listing, pause: Callable[[float], None], rate: float = DIGEST_RATE) -> str:
    """Compute the digest of an artifact. Blocks on the disk, and pauses to read no faster than `rate`.

    The digest of a folder is that of the lines which `sha256sum` prints for its files, sorted by name.

    Args:
        path: Path of the artifact.
        listing: Files of the artifact.
        pause: Function that waits for the given seconds. It is also called with 0 between two chunks, and may raise an
            exception to stop.
        rate: Maximum bytes per second.

    Returns:
        `sha256:` and the SHA-256 digest in hexadecimal.

    Raises:
        NoDigestError: A file cannot be read, or the artifact has changed.
    """
    pace = _Pace(pause, rate)
    try:
        if not listing.is_folder:
            return f"sha256:{_digest_file(path, listing.files[0], pace)}"
        whole = hashlib.sha256()
        for file in listing.files:
            line = f"{_digest_file(os.path.join(path, file.name), file, pace)}  {file.name}\n"
            whole.update(os.fsencode(line))
        if list_files(path) != listing:
            raise NoDigestError("it changed while it was read")
    except FileNotFoundError:
        raise NoDigestError("it was removed before it was read") from None
    except OSError as error:
        raise NoDigestError(f"it cannot be read ({error.strerror})") from None
    return f"sha256:{whole.hexdigest()}"


class _Pace:
    """Limits how fast bytes are read."""

    def __init__(self, pause: Callable[[float], None], rate: float) -> None:
        self._pause = pause
        self._rate = rate
        self._began = time.monotonic()
        self._read = 0

    def note(self, size: int) -> None:
        """Pause after reading the given number of bytes, if that was too fast."""
        self._read += size
        self._pause(max(0.0, self._began + self._read / self._rate - time.monotonic()))


def _digest_file(path: str, file: File, pace: _Pace) -> str:
    whole = hashlib.sha256()
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as stream:
        if _version(os.fstat(stream.fileno())) != file.version:
            raise NoDigestError("it changed before it was read")
        left = file.size
        while left >= 0:  # one byte more, so that a file that grows is noticed
            chunk = stream.read(min(_CHUNK, left + 1))
            if not chunk:
                break
            whole.update(chunk)
            left -= len(chunk)
            pace.note(len(chunk))
    if left != 0 or _version(os.stat(path)) != file.version:
        raise NoDigestError("it changed while it was read")
    return whole.hexdigest()


def _walk(root: str) -> Iterator[File]:
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                name = os.path.join(folder, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(name)
                    continue
                with contextlib.suppress(FileNotFoundError):  # a link to nothing
                    status = os.stat(os.path.join(root, name))
                    if stat.S_ISREG(status.st_mode):
                        yield File(name, _version(status))


def _version(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
