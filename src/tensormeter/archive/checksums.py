"""Checksums of an archive's files, in the form that `sha256sum --check` reads."""

import errno
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from tensormeter.archive.layout import SUMS
from tensormeter.errors import TensormeterError

__all__ = ["file_digest", "read_sums", "sums_text"]

_MOST_BYTES: Final = 1 << 30


def file_digest(path: Path) -> str:
    """Return the SHA-256 digest of a file in hexadecimal. Raises OSError."""
    if not path.is_file():  # opening a named pipe would wait
        raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums_text(digests: Iterable[tuple[str, str]]) -> Iterable[str]:
    """Yield the lines of the file. `digests` contains the paths of files, and their digests."""
    for path, digest in digests:
        yield f"{digest}  {path}\n"


def read_sums(folder: Path) -> Mapping[str, str]:
    """Read the digests of an archive's files, by path.

    Raises:
        TensormeterError: The file is missing or cannot be read.
    """
    path = folder / SUMS
    try:
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))
        if path.stat().st_size > _MOST_BYTES:
            raise TensormeterError(f"{path}: the file is larger than {_MOST_BYTES >> 20} MiB; export the project again")
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TensormeterError(f"{path}: cannot read the checksums ({error}); export the project again") from None
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines) if name}
