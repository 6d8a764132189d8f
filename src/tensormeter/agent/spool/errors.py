"""Errors of spools, and their translation from SQLite's errors."""

import sqlite3
from pathlib import Path
from typing import Final

from tensormeter.disk.locks import holder
from tensormeter.errors import SpoolError

__all__ = ["ERRORS", "SpoolDamagedError", "SpoolFullError", "SpoolVersionError", "named"]

_FULL: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)
"""SQLite reports a quota, a limit on file sizes, and a full disk at the opening of a database with the other codes."""

ERRORS: Final = (sqlite3.Error, UnicodeDecodeError, OverflowError)
"""Exceptions that SQLite raises, also when its own message, or a number in the file, is damaged."""


class SpoolDamagedError(SpoolError):
    """The spool's file is damaged, and can be repaired by `open_repaired`."""


class SpoolFullError(SpoolError):
    """The disk refuses more data: it is full, or a quota is used up."""


class SpoolVersionError(SpoolError):
    """The spool is of another version of tensormeter."""


def named(error: Exception, what: str, path: Path | None = None) -> SpoolError:
    """Translate an error of SQLite.

    Args:
        error: Exception raised by SQLite.
        what: Description of the failed operation.
        path: Path of the database, to name the process that has it locked.
    """
    extended = getattr(error, "sqlite_errorcode", 0)
    code = extended & 0xFF
    # Our statements never break a constraint unless the contents of the file have changed.
    damaged = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT)
    # SQLite reports a header with a format that never existed without a specific code.
    damaged = damaged or (code == sqlite3.SQLITE_ERROR and str(error) == "unsupported file format")
    damaged = damaged or not isinstance(error, sqlite3.Error) or isinstance(error, sqlite3.DataError)
    if code == sqlite3.SQLITE_BUSY and path is not None:
        what += f", which is in use{holder(path, path.with_name(f'{path.name}-shm'))}"
    kind = SpoolDamagedError if damaged else SpoolFullError if extended in _FULL else SpoolError
    return kind(f"{what}: {error}")
