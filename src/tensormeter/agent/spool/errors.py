"""What can be wrong with a spool, and SQLite's errors as those."""

import sqlite3
from pathlib import Path
from typing import Final

from tensormeter.disk.locks import holder
from tensormeter.errors import SpoolError

__all__ = ["ERRORS", "SpoolDamagedError", "SpoolFullError", "SpoolVersionError", "named"]

_FULL: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)
"""The others are what SQLite says of a quota or a limit for files, and of a full disk when it opens a database."""

ERRORS: Final = (sqlite3.Error, UnicodeDecodeError, OverflowError)
"""What a call of SQLite raises, also when its own message, or a number in the file, is damaged."""


class SpoolDamagedError(SpoolError):
    """The spool's file is damaged, and can be repaired by `open_repaired`."""


class SpoolFullError(SpoolError):
    """The disk takes no more: it is full, or somebody's share of it is."""


class SpoolVersionError(SpoolError):
    """The spool is of another version of tensormeter."""


def named(error: Exception, what: str, path: Path | None = None) -> SpoolError:
    """SQLite's error as ours.

    Args:
        error: What SQLite raised.
        what: What could not be done.
        path: The database, to find out who has it locked.
    """
    extended = getattr(error, "sqlite_errorcode", 0)
    code = extended & 0xFF
    # What is written never breaks a constraint, if what is there is what was written before.
    damaged = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT)
    # Of a header with a format that SQLite never had, it says so without a code of its own.
    damaged = damaged or (code == sqlite3.SQLITE_ERROR and str(error) == "unsupported file format")
    damaged = damaged or not isinstance(error, sqlite3.Error) or isinstance(error, sqlite3.DataError)
    if code == sqlite3.SQLITE_BUSY and path is not None:
        what += f", which is in use{holder(path, path.with_name(f'{path.name}-shm'))}"
    kind = SpoolDamagedError if damaged else SpoolFullError if extended in _FULL else SpoolError
    return kind(f"{what}: {error}")
