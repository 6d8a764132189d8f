"""Transactions of the spool."""

import sqlite3
from pathlib import Path

from tensormeter.agent.spool.errors import ERRORS, named

__all__ = ["Transaction"]


class Transaction:
    """A context manager that runs a transaction (BEGIN IMMEDIATE, COMMIT) and translates SQLite's errors."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._database = database
        self._path = path

    def __enter__(self) -> None:
        try:
            self._database.execute("BEGIN IMMEDIATE")
        except ERRORS as error:
            raise named(error, f"cannot write to the spool {self._path}", self._path) from error

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._database.execute("COMMIT")
        except ERRORS as failure:
            error = failure
        if error is not None:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            if isinstance(error, ERRORS):
                raise named(error, f"cannot write to the spool {self._path}", self._path) from error
