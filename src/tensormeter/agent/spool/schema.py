"""The spool's tables: creating, migrating and checking them.

Every row has a checksum. A request's checksum covers its body (`request.checksum`); in the other tables, it covers all
other columns (`request.seal`). The table `pending` repeats a request's number of items, so that a damaged request's
items can be counted.
"""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from tensormeter.agent.spool.errors import SpoolDamagedError, SpoolVersionError
from tensormeter.agent.spool.request import Priority, checksum, seal
from tensormeter.errors import SpoolError

__all__ = ["HIGHEST_SEQUENCE", "OF_VERSION_2", "SEALED", "check", "is_sealed", "of_version_2", "prepare"]

_VERSION: Final = 3

_SCHEMA: Final = """
CREATE TABLE request (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    signal TEXT NOT NULL,
    items INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    thinned INTEGER NOT NULL DEFAULT 0,
    checksum INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX request_priority ON request (priority, thinned, sequence);
CREATE TABLE pending (
    destination TEXT NOT NULL,
    sequence INTEGER NOT NULL REFERENCES request (sequence) ON DELETE CASCADE,
    items INTEGER NOT NULL,
    retried INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (destination, sequence)
) WITHOUT ROWID;
CREATE INDEX pending_sequence ON pending (sequence);
CREATE TABLE quarantine (
    number INTEGER PRIMARY KEY,
    destination TEXT NOT NULL,
    id TEXT NOT NULL,
    reason TEXT NOT NULL,
    signal TEXT NOT NULL,
    items INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (destination, id)
);
CREATE TABLE cursor (
    process TEXT NOT NULL,
    lane INTEGER NOT NULL,
    position INTEGER NOT NULL,
    last_time INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (process, lane)
) WITHOUT ROWID;
CREATE TABLE aggregate (
    process TEXT NOT NULL,
    stream TEXT NOT NULL,
    state TEXT NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (process, stream)
) WITHOUT ROWID;
CREATE TABLE process (
    process TEXT PRIMARY KEY,
    started INTEGER NOT NULL,
    ended INTEGER NOT NULL,
    checksum INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE loss (
    reason TEXT PRIMARY KEY,
    items INTEGER NOT NULL,
    said INTEGER NOT NULL,
    checksum INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE report (
    process TEXT PRIMARY KEY,
    resource TEXT NOT NULL,
    dropped TEXT NOT NULL,
    told TEXT NOT NULL,
    time INTEGER NOT NULL,
    checksum INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE kept (
    destination TEXT NOT NULL,
    sequence INTEGER NOT NULL REFERENCES request (sequence) ON DELETE CASCADE,
    epoch TEXT NOT NULL,
    number INTEGER NOT NULL,
    sent TEXT NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (destination, sequence)
) WITHOUT ROWID;
CREATE INDEX kept_sequence ON kept (sequence);
CREATE INDEX kept_number ON kept (destination, epoch, number);
CREATE TABLE origin (
    process TEXT PRIMARY KEY,
    description TEXT NOT NULL,
    checksum INTEGER NOT NULL
) WITHOUT ROWID;
"""

SEALED: Final = {
    "pending": "destination, sequence, items, retried",
    "cursor": "process, lane, position, last_time",
    "aggregate": "process, stream, state",
    "process": "process, started, ended",
    "loss": "reason, items, said",
    "report": "process, resource, dropped, told, time",
    "kept": "destination, sequence, epoch, number, sent",
    "origin": "process, description",
}
"""Columns of the small tables that `seal` covers."""

OF_VERSION_2: Final = {
    "pending": "SELECT destination, sequence, (SELECT items FROM request WHERE request.sequence = pending.sequence), 0 FROM pending",
    "cursor": "SELECT process, lane, position, last_time FROM cursor",
    "aggregate": "SELECT process, stream, state FROM aggregate",
    "process": "SELECT process, started, ended FROM process",
    "loss": "SELECT reason, items, 0 FROM loss",
}
"""Queries that read the columns in `SEALED` from a spool of version 2, in which only requests had checksums."""

HIGHEST_SEQUENCE: Final = 1 << 60

_FAILURE: Final = re.compile(r"error code=(\d+)")
"""Part of SQLite's message about a page that its integrity check could not read."""

_APPLICATION_ID: Final = 0x746D7300 | _VERSION
"""A second copy of the version. If the two copies differ, the spool is damaged rather than of another version."""


def prepare(database: sqlite3.Connection, path: Path) -> None:
    """Create the tables in an empty file, or migrate tables of version 2. Call this in a transaction.

    Raises:
        SpoolDamagedError: The file is damaged.
        SpoolVersionError: The spool was written by another version.
    """
    version = database.execute("PRAGMA user_version").fetchone()[0]
    known = database.execute("PRAGMA application_id").fetchone()[0]
    if version == known == 0 and not _tables(database):
        for statement in _SCHEMA.split(";"):
            database.execute(statement)
        _number(database)
    elif version == known ^ 0x746D7300 == 2:
        _migrate(database)
    elif version != _VERSION:
        if known in (0, _APPLICATION_ID, 0x746D7302):
            raise SpoolDamagedError(f"the spool {path} is damaged: invalid version {version}")
        raise SpoolVersionError(
            f"{path} has spool version {version}, but this tensormeter reads version {_VERSION}; "
            "deliver the run with the tensormeter that recorded it"
        )


def check(database: sqlite3.Connection, path: Path) -> None:
    """Check the whole file, using only SQLite to read it.

    A process that closes a file releases all POSIX locks that it holds on that file. If this process read the file in
    another way, SQLite would not notice that its locks are gone. Another process that closes the database could then
    delete the log, as if it were the last process.

    Raises:
        SpoolDamagedError: The file is damaged.
        sqlite3.Error, UnicodeDecodeError, OverflowError: The file cannot be read.
    """
    result = database.execute("PRAGMA integrity_check(1)").fetchone()
    if result and (failure := _FAILURE.search(str(result[0]))) and int(failure[1]) & 0xFF == sqlite3.SQLITE_IOERR:
        raise SpoolError(f"cannot read the spool {path}: {result[0]}")  # a failing disk is not damage
    if result != ("ok",):
        raise SpoolDamagedError(f"the spool {path} is damaged: {result and result[0]}")
    with closing(sqlite3.connect(":memory:")) as model:
        model.executescript(_SCHEMA)
        expected = _tables(model)
    if _tables(database) != expected:
        raise SpoolDamagedError(f"the spool {path} is damaged: it does not have the tables of a spool")
    if contradiction := next(_contradictions(database), ""):
        raise SpoolDamagedError(f"the spool {path} is damaged: {contradiction}")
    database.execute("BEGIN IMMEDIATE")
    try:
        # Set the version to its current value, because BEGIN alone does not check whether the file is writable.
        database.execute(f"PRAGMA user_version = {_VERSION}")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
            raise
        raise SpoolDamagedError(
            f"the spool {path} is damaged: its header has a file format that SQLite does not support"
        ) from error
    finally:
        if database.in_transaction:
            database.execute("ROLLBACK")


def is_sealed(row: Sequence[Any]) -> bool:
    """Return whether the last column of a row is the checksum of the other columns."""
    return all(isinstance(value, str | int) for value in row) and seal(*row[:-1]) == row[-1]


def of_version_2(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Add the columns that version 2 lacked to a row of `quarantine`.

    Args:
        row: Columns destination, id, reason, signal, items and body.
    """
    destination, batch, reason, signal, items, body = row
    priority = Priority.SCALARS if signal == "metrics" else Priority.ESSENTIAL
    return destination, batch, reason, signal, items, priority, checksum(batch, signal, items, body), body


def _contradictions(database: sqlite3.Connection) -> Iterator[str]:
    """Yield descriptions of contradictions that SQLite's own check does not find."""
    for table, columns in SEALED.items():
        for row in database.execute(f"SELECT {columns}, checksum FROM {table}"):
            if not is_sealed(row):
                yield f"a row of the table {table} does not match its checksum"
    if database.execute(
        "SELECT 1 FROM pending LEFT JOIN request USING (sequence) WHERE request.sequence IS NULL LIMIT 1"
    ).fetchone():
        yield "a waiting request is missing"
    if database.execute(
        "SELECT 1 FROM request WHERE NOT EXISTS (SELECT 1 FROM pending WHERE pending.sequence = request.sequence) "
        "AND NOT EXISTS (SELECT 1 FROM kept WHERE kept.sequence = request.sequence) LIMIT 1"
    ).fetchone():
        yield "a request has no destination"
    for (number,) in database.execute("SELECT seq FROM sqlite_sequence UNION ALL SELECT max(sequence) FROM request"):
        if number is not None and not (isinstance(number, int) and 0 <= number < HIGHEST_SEQUENCE):
            yield f"a request has the invalid number {number!r}"


def _number(database: sqlite3.Connection) -> None:
    database.execute(f"PRAGMA user_version = {_VERSION}")
    database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")


def _migrate(database: sqlite3.Connection) -> None:
    """Migrate the tables of version 2 to this version."""
    rows = {table: database.execute(query).fetchall() for table, query in OF_VERSION_2.items()}
    rejected = database.execute("SELECT destination, id, reason, signal, items, body FROM quarantine").fetchall()
    for table in (*OF_VERSION_2, "quarantine"):
        database.execute(f"DROP TABLE {table}")
    for statement in _SCHEMA.split(";"):
        words = statement.split()
        if words and words[2] not in ("request", "request_priority"):
            database.execute(statement)
    for table, old_rows in rows.items():
        marks = ", ".join("?" * (SEALED[table].count(",") + 2))
        database.executemany(
            f"INSERT INTO {table} ({SEALED[table]}, checksum) VALUES ({marks})",
            [(*row, seal(*row)) for row in old_rows],
        )
    database.executemany(
        "INSERT INTO quarantine (destination, id, reason, signal, items, priority, checksum, body) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        map(of_version_2, rejected),
    )
    _number(database)


def _tables(database: sqlite3.Connection) -> dict[str, str]:
    return dict(database.execute("SELECT name, sql FROM sqlite_master").fetchall())
