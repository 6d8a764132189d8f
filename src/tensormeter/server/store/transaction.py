"""Transactions on a connection, and the one place where SQLite's errors become ours."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from tensormeter.errors import StoreError
from tensormeter.server.store import StoreUnavailableError

__all__ = ["mapped_errors", "reading", "writing"]


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
    except sqlite3.OperationalError as error:
        raise StoreUnavailableError(f"cannot {verb} the store: {error}") from error
    except (
        sqlite3.DatabaseError,
        UnicodeDecodeError,
        json.JSONDecodeError,
    ) as error:  # the last two: text that has changed
        raise StoreError(
            f"cannot {verb} the store: {error}; if it is damaged, restore the data folder from a backup",
        ) from error
