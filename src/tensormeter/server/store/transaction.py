"""Transactions on a connection, and the one place where SQLite's errors become ours."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tensormeter.errors import StoreError, TensormeterError
from tensormeter.server.store import StoreUnavailableError

__all__ = ["mapped_errors", "reading", "writing"]

_CHANGED: Final = (ValueError, TypeError, AttributeError, LookupError, OverflowError)
"""What values raise that are not of the type that was stored: SQLite gives back any, after bits have changed."""


@contextmanager
def writing(connection: sqlite3.Connection) -> Iterator[None]:
    """All statements inside, or none of them.

    Raises:
        StoreUnavailableError: SQLite could not do it: disk full, I/O error. Nothing was stored.
        StoreError: The file is damaged.
    """
    with mapped_errors("write to"):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # SQLite has rolled back by itself after some errors
                connection.execute("ROLLBACK")
            raise


@contextmanager
def reading(connection: sqlite3.Connection) -> Iterator[None]:
    """One consistent snapshot for all statements inside; errors as for `writing`."""
    with mapped_errors("read"):
        connection.execute("BEGIN")
        try:
            yield
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")


@contextmanager
def mapped_errors(verb: str) -> Iterator[None]:
    """What SQLite raises inside, as the errors of `Store`; `verb` says what failed."""
    try:
        yield
    except TensormeterError:
        raise
    except sqlite3.OperationalError as error:
        raise StoreUnavailableError(f"cannot {verb} the store: {error}") from error
    except (sqlite3.DatabaseError, *_CHANGED) as error:
        raise StoreError(
            f"cannot {verb} the store: {type(error).__name__}: {error}; "
            "if it is damaged, restore the data folder from a backup",
        ) from error
