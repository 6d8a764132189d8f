"""Comparison of the file's header with its tables, so that a flipped bit in the header cannot start a migration."""

import sqlite3
from contextlib import closing
from typing import Final

__all__ = ["APPLICATION_ID", "header_fault", "version_of_tables"]

APPLICATION_ID: Final = 0x746D7472
"""The text "tmtr" as an integer."""

_INTRODUCED: Final = (
    ("journal", "payload"),
    ("summary", "metric"),
    ("process", "began_seq"),
    ("sample", "coarse"),
    ("event", "record"),
    ("gap", "time"),
    ("damaged", "payload"),
    ("bundle", "heads"),
    ("result", "summary"),
    ("run", "job_type"),
)
"""A table and a column that the version introduced, for each version from 1 on."""

_Columns = dict[str, frozenset[str]]


def version_of_tables(connection: sqlite3.Connection, schema: str) -> int | None:
    """Return the version of the file's tables; None if there are none or the tables match no version completely.

    Tables from a newer version count as the current version if they have all of its columns.

    Args:
        connection: Connection to the file.
        schema: Statements that create the tables of the current version.

    Raises:
        sqlite3.Error: The tables cannot be read.
    """
    return _version_of(_columns(connection), _expected(schema))


def header_fault(connection: sqlite3.Connection, schema: str) -> str | None:
    """Return a message if the header does not match the tables; otherwise None.

    Files from other programs do not count as faulty, and neither do files from newer versions whose tables differ from
    the current ones. Arguments and errors are the same as for `version_of_tables`.
    """
    version, application = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("user_version", "application_id")
    )
    columns, expected = _columns(connection), _expected(schema)
    tables = _version_of(columns, expected)
    is_ours = application == APPLICATION_ID
    if tables is None:
        if is_ours and version <= len(_INTRODUCED):
            return f"its header has schema {version}, but the tables of that schema are missing"
        return None
    if not is_ours:
        return f"its header has the application ID {application:#x}, but a store's is {APPLICATION_ID:#x}"
    if version == tables or (version > tables and columns != expected and tables == len(_INTRODUCED)):
        return None
    doubt = " (if a newer tensormeter wrote it, upgrade)" if version > len(_INTRODUCED) else ""
    return f"its header has schema {version}, but its tables are of schema {tables}{doubt}"


def _version_of(present: _Columns, expected: _Columns) -> int | None:
    version = 0
    for table, column in _INTRODUCED:
        if column not in present.get(table, ()):
            break
        version += 1
    if version == len(_INTRODUCED) and any(
        columns - present.get(table, frozenset()) for table, columns in expected.items()
    ):
        return None
    return version or None


def _expected(schema: str) -> _Columns:
    with closing(sqlite3.connect(":memory:")) as model:
        model.executescript(schema)
        return _columns(model)


def _columns(connection: sqlite3.Connection) -> _Columns:
    """Return the columns of each table."""
    names = connection.execute(
        r"SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\_%' ESCAPE '\'"
    )
    return {
        str(name): frozenset(
            str(row[0]) for row in connection.execute("SELECT name FROM pragma_table_info(?)", (name,)).fetchall()
        )
        for (name,) in names.fetchall()
    }
