"""Errors of spools, and the translation of SQLite's errors into them."""

import sqlite3
from pathlib import Path
from typing import Final

from tensormeter.disk.locks import holder
from tensormeter.errors import SpoolError

__all__ = ["ERRORS", "SpoolDamagedError", "SpoolFullError", "SpoolVersionError", "named"]

_FULL: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)
"""SQLite's codes for a full disk.

SQLite uses the last two for a quota, a file-size limit, or a disk that is full when the database is opened.
"""

ERRORS: Final = (sqlite3.Error, UnicodeDecodeError, OverflowError)
"""Exceptions that SQLite raises, including those for a damaged message or number in the file."""


class SpoolDamagedError(SpoolError):
    """The spool's file is damaged; `open_repaired` can repair it."""


class SpoolFullError(SpoolError):
    """The disk refuses more data because it is full or a quota is used up."""


class SpoolVersionError(SpoolError):
    """The spool was written by another version of tensormeter."""


def named(error: Exception, what: str, path: Path | None = None) -> SpoolError:
    """Translate an SQLite error.

    Args:
        error: Exception that SQLite raised.
        what: Description of the failed operation.
        path: Path of the database, for naming the process that has locked it.
    """
    extended = getattr(error, "sqlite_errorcode", 0)
    code = extended & 0xFF
    # Our statements never violate a constraint unless the contents of the file have changed.
    damaged = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT)
    # SQLite has no specific code for a header with a format that never existed.
    damaged = damaged or (code == sqlite3.SQLITE_ERROR and str(error) == "unsupported file format")
    damaged = damaged or not isinstance(error, sqlite3.Error) or isinstance(error, sqlite3.DataError)
    if code == sqlite3.SQLITE_BUSY and path is not None:
        what += f", which is in use{holder(path, path.with_name(f'{path.name}-shm'))}"
    kind = SpoolDamagedError if damaged else SpoolFullError if extended in _FULL else SpoolError
    return kind(f"{what}: {error}")
