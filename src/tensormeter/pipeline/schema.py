"""The tables of the spool, and whether a file has them."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from tensormeter.pipeline.errors import SpoolDamagedError, SpoolVersionError

__all__ = ["check", "prepare"]

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
    body BLOB NOT NULL,
    UNIQUE (destination, id)
);
CREATE TABLE cursor (
    process TEXT NOT NULL,
    lane INTEGER NOT NULL,
    position INTEGER NOT NULL,
    last_time INTEGER NOT NULL,
    PRIMARY KEY (process, lane)
) WITHOUT ROWID;
CREATE TABLE aggregate (
    process TEXT NOT NULL,
    stream TEXT NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (process, stream)
) WITHOUT ROWID;
CREATE TABLE process (
    process TEXT PRIMARY KEY,
    started INTEGER NOT NULL DEFAULT 0,
    ended INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE loss (reason TEXT PRIMARY KEY, items INTEGER NOT NULL) WITHOUT ROWID;
"""

_SINCE_3: Final = """
CREATE TABLE kept (
    destination TEXT NOT NULL,
    sequence INTEGER NOT NULL REFERENCES request (sequence) ON DELETE CASCADE,
    epoch TEXT NOT NULL,
    number INTEGER NOT NULL,
    sent TEXT NOT NULL,
    PRIMARY KEY (destination, sequence)
) WITHOUT ROWID;
CREATE INDEX kept_sequence ON kept (sequence);
CREATE TABLE origin (process TEXT PRIMARY KEY, description TEXT NOT NULL) WITHOUT ROWID;
"""

_FAMILY: Final = 0x746D7300
_APPLICATION_ID: Final = _FAMILY | _VERSION
"""The version once more: a spool whose two numbers differ is damaged, not of another version."""


def prepare(database: sqlite3.Connection, path: Path) -> None:
    """Make the tables in a file that has none. To be called in a transaction.

    Raises:
        SpoolDamagedError: The file is damaged.
        SpoolVersionError: It is a spool of another version.
    """
    version = database.execute("PRAGMA user_version").fetchone()[0]
    known = database.execute("PRAGMA application_id").fetchone()[0]
    if version == known == 0 and not _tables(database):
        _make(database, _SCHEMA + _SINCE_3)
    elif version == 2 and known == _FAMILY | 2:
        _make(database, _SINCE_3)
    elif version != _VERSION:
        if known in (0, _FAMILY | 2, _APPLICATION_ID):
            raise SpoolDamagedError(f"the spool {path} is damaged: version {version}")
        raise SpoolVersionError(
            f"{path} has spool version {version}, this tensormeter reads {_VERSION}; "
            "deliver it with the version that wrote it"
        )


def check(database: sqlite3.Connection, path: Path) -> None:
    """Look through the whole file, by way of SQLite alone.

    Whoever closes a file gives up all POSIX locks that its process has on it. If the file were read here otherwise, SQLite would
    not know that its locks are gone, and others who close the database would delete its log as the last who have it open.

    Raises:
        SpoolDamagedError: It is not as it should be.
        sqlite3.Error, UnicodeDecodeError, OverflowError: It cannot be read.
    """
    found = database.execute("PRAGMA quick_check(1)").fetchone()
    if found != ("ok",):
        raise SpoolDamagedError(f"the spool {path} is damaged: {found and found[0]}")
    with closing(sqlite3.connect(":memory:")) as model:
        model.executescript(_SCHEMA + _SINCE_3)
        right = _tables(model)
    if _tables(database) != right:
        raise SpoolDamagedError(f"the spool {path} is damaged: its tables are not those of a spool")
    database.execute("BEGIN IMMEDIATE")
    try:
        # What it is already; BEGIN alone does not ask whether one may write.
        database.execute(f"PRAGMA user_version = {_VERSION}")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
            raise
        raise SpoolDamagedError(f"the spool {path} is damaged: SQLite takes it for one of a future format") from error
    finally:
        if database.in_transaction:
            database.execute("ROLLBACK")


def _make(database: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";"):
        database.execute(statement)
    database.execute(f"PRAGMA user_version = {_VERSION}")
    database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")


def _tables(database: sqlite3.Connection) -> dict[str, str]:
    return dict(database.execute("SELECT name, sql FROM sqlite_master").fetchall())
