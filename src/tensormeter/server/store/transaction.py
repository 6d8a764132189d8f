"""Transactions on a connection, and the one place where SQLite's errors become ours."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tensormeter.errors import TensormeterError
from tensormeter.server.store.errors import DamagedError, StoreUnavailableError

__all__ = ["CHANGED", "mapped_errors", "reading", "writing"]

CHANGED: Final = (ValueError, TypeError, AttributeError, LookupError, OverflowError)
"""What values raise that are not of the type that was stored: SQLite gives back any, after bits have changed."""


@contextmanager
def writing(connection: sqlite3.Connection) -> Iterator[None]:
    """All statements inside, or none of them.

    Raises:
        StoreUnavailableError: SQLite could not do it: disk full, I/O error. Nothing was stored.
        DamagedError: The file is damaged.
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
        if "decode to UTF-8" in str(error):  # what was stored was text
            raise DamagedError(f"a text: {error}") from error
        raise StoreUnavailableError(f"cannot {verb} the store: {error}") from error
    except (sqlite3.DatabaseError, *CHANGED) as error:
        raise DamagedError(
            f"cannot {verb} the store: {type(error).__name__}: {error}; `tensormeter check` lists what is damaged",
            named=True,
        ) from error
