"""What the header of a store's file says of it, held against the tables that are there: a flipped bit in it must start no migration."""

import sqlite3
from contextlib import closing
from typing import Final

__all__ = ["APPLICATION_ID", "header_fault", "version_of_tables"]

APPLICATION_ID: Final = 0x746D7472
"""The text "tmtr"."""

_INTRODUCED: Final = (
    ("journal", "payload"),
    ("summary", "metric"),
    ("process", "began_seq"),
    ("sample", "coarse"),
    ("event", "record"),
    ("gap", "time"),
    ("damaged", "payload"),
)
"""A table and a column that each version was the first to have, from version 1 on."""

_Columns = dict[str, frozenset[str]]


def version_of_tables(connection: sqlite3.Connection, schema: str) -> int | None:
    """The version whose tables there are; None if there are none, or not all of one's.

    A newer version's count as the present ones if they have all of them.

    Args:
        connection: To the file.
        schema: Statements that create the tables of the present version.

    Raises:
        sqlite3.Error: The tables cannot be read.
    """
    return _version_of(_columns(connection), _expected(schema))


def header_fault(connection: sqlite3.Connection, schema: str) -> str | None:
    """Why the header cannot be that of this file, for people, or None; a newer version's or another program's file has no fault.

    Arguments and errors as for `version_of_tables`.
    """
    version, application = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("user_version", "application_id")
    )
    there, expected = _columns(connection), _expected(schema)
    tables = _version_of(there, expected)
    is_ours = application == APPLICATION_ID
    if tables is None:
        if is_ours and version <= len(_INTRODUCED):
            return f"its header says schema {version}, and it does not have the tables of that"
        return None
    if not is_ours:
        return f"its header has the application id {application:#x}, and a store has {APPLICATION_ID:#x}"
    if version == tables or (version > tables and there != expected and tables == len(_INTRODUCED)):
        return None
    doubt = " (if a newer tensormeter wrote it, upgrade)" if version > len(_INTRODUCED) else ""
    return f"its header says schema {version}, and it has the tables of schema {tables}{doubt}"


def _version_of(there: _Columns, expected: _Columns) -> int | None:
    known = 0
    for table, column in _INTRODUCED:
        if column not in there.get(table, ()):
            break
        known += 1
    if known == len(_INTRODUCED) and any(
        columns - there.get(table, frozenset()) for table, columns in expected.items()
    ):
        return None
    return known or None


def _expected(schema: str) -> _Columns:
    with closing(sqlite3.connect(":memory:")) as model:
        model.executescript(schema)
        return _columns(model)


def _columns(connection: sqlite3.Connection) -> _Columns:
    """Columns by table."""
    names = connection.execute(
        r"SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\_%' ESCAPE '\'"
    )
    return {
        str(name): frozenset(
            str(row[0]) for row in connection.execute("SELECT name FROM pragma_table_info(?)", (name,)).fetchall()
        )
        for (name,) in names.fetchall()
    }
