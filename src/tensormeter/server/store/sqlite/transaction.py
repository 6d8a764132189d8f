"""Transactions on a connection, and conversion of SQLite errors to the store's errors."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tensormeter.errors import TensormeterError
from tensormeter.server.store.models.errors import (
    DamagedError,
    StoreFullError,
    StoreUnavailableError,
    SuspectedDamageError,
)

__all__ = ["CHANGED", "describe", "mapped_errors", "may_be_damage", "primary_code", "reading", "writing"]

_SUSPECTED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""Primary result codes for damage. SQLite also returns the first one if the disk cannot read a page (EIO)."""

CHANGED: Final = (ValueError, TypeError, AttributeError, LookupError, OverflowError)
"""Exceptions caused by values of an unexpected type, which SQLite may return if bits have flipped."""


@contextmanager
def writing(connection: sqlite3.Connection) -> Iterator[None]:
    """Execute the statements inside the block in one transaction.

    Raises:
        StoreFullError: The disk is full. Nothing was stored.
        SuspectedDamageError: SQLite reported damage, possibly because of an I/O error. Nothing was stored.
        StoreUnavailableError: SQLite failed because of an I/O error or a lock. Nothing was stored.
        DamagedError: The file is damaged.
    """
    with mapped_errors("write to"):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # after some errors, SQLite has already rolled back
                connection.execute("ROLLBACK")
            raise


@contextmanager
def reading(connection: sqlite3.Connection) -> Iterator[None]:
    """Execute the statements inside the block on one consistent snapshot. Raises the same errors as `writing`."""
    with mapped_errors("read"):
        connection.execute("BEGIN")
        try:
            yield
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")


@contextmanager
def mapped_errors(verb: str) -> Iterator[None]:
    """Convert SQLite exceptions to the errors of `Store`.

    Args:
        verb: Verb for the failed operation, such as "read". It is used in the message "cannot read the store".
    """
    try:
        yield
    except TensormeterError:
        raise
    except sqlite3.OperationalError as error:
        if "decode to UTF-8" in str(error):  # bits in the stored text have flipped
            raise DamagedError(f"a text: {error}") from error
        unavailable = StoreFullError if primary_code(error) == sqlite3.SQLITE_FULL else StoreUnavailableError
        raise unavailable(f"cannot {verb} the store: {describe(error)}") from error
    except (sqlite3.DatabaseError, *CHANGED) as error:
        if may_be_damage(error):
            raise SuspectedDamageError(
                f"cannot {verb} the store: {describe(error)}; the server is checking whether the file is damaged"
            ) from error
        raise DamagedError(
            f"cannot {verb} the store: {type(error).__name__}: {error}; `tensormeter check` lists all damage",
            named=True,
        ) from error


def primary_code(error: BaseException | None) -> int:
    """Return SQLite's primary result code for an error; 0 if it has none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def may_be_damage(error: BaseException | None) -> bool:
    """Return whether SQLite reported damage. The cause may also be that the disk failed to read."""
    return isinstance(error, sqlite3.DatabaseError) and primary_code(error) in _SUSPECTED


def describe(error: BaseException) -> str:
    """Return SQLite's message for an error, with the name of the error code if it adds information."""
    name = getattr(error, "sqlite_errorname", "")
    return f"{error} ({name})" if name.count("_") > 1 else str(error)
