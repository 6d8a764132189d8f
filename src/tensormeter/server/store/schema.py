"""The SQLite file: its tables, its version, and how connections to it are opened.

Durability: WAL with `synchronous=NORMAL`. A commit survives the death of the process at any instant. After a loss of
power the file is whole, but the last commits may be missing.
"""

import sqlite3
from pathlib import Path
from typing import Final

from tensormeter.errors import StoreError

__all__ = ["SCHEMA_VERSION", "connect", "prepare"]

SCHEMA_VERSION: Final = 1
_APPLICATION_ID: Final = 0x746D7472  # "tmtr"

_SCHEMA: Final = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY,
    project TEXT NOT NULL,
    run_id TEXT NOT NULL,
    name TEXT NOT NULL,
    config TEXT NOT NULL DEFAULT '{}',      -- JSON object
    config_time INTEGER NOT NULL DEFAULT 0, -- time of the event that config is from
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    series INTEGER NOT NULL DEFAULT 0,      -- rows in series
    points INTEGER NOT NULL DEFAULT 0,      -- points in chunks
    UNIQUE (project, run_id)
);
CREATE INDEX run_by_run_id ON run (run_id);
CREATE INDEX run_by_created ON run (created);

CREATE TABLE process (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES run,
    process TEXT NOT NULL,
    resource TEXT NOT NULL,                 -- JSON object
    started INTEGER,                        -- time of the latest run.start
    ended INTEGER,                          -- time of the latest run.end
    end_state TEXT,
    UNIQUE (run, process)
);

CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    process INTEGER NOT NULL REFERENCES process,
    metric TEXT NOT NULL,
    attributes TEXT NOT NULL,               -- canonical JSON object
    unit TEXT NOT NULL,
    description TEXT NOT NULL,
    points INTEGER NOT NULL DEFAULT 0,      -- points in chunks
    last_time INTEGER,                      -- latest point in chunks
    last_word INTEGER,
    last_integer INTEGER,
    UNIQUE (process, metric, attributes)
);

CREATE TABLE chunk (
    id INTEGER PRIMARY KEY,
    series INTEGER NOT NULL REFERENCES series,
    seq INTEGER NOT NULL,                   -- order within the series
    n INTEGER NOT NULL,
    t_min INTEGER NOT NULL,
    t_max INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    times BLOB NOT NULL,
    words BLOB NOT NULL,
    integers BLOB NOT NULL
);
CREATE UNIQUE INDEX chunk_by_series ON chunk (series, seq, n, t_min, t_max);

CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    process INTEGER NOT NULL REFERENCES process,
    time INTEGER NOT NULL,
    name TEXT NOT NULL,
    digest BLOB NOT NULL,                   -- SHA-256 of body and attributes
    body TEXT NOT NULL,                     -- JSON
    attributes TEXT NOT NULL,               -- JSON object
    UNIQUE (process, time, name, digest)
);

CREATE TABLE batch (                        -- requests with an id that were stored
    id TEXT PRIMARY KEY,
    digest BLOB NOT NULL,                   -- SHA-256 of signal and payload
    received INTEGER NOT NULL,
    rejected INTEGER NOT NULL,
    message TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE journal (                      -- requests with points that are in no chunk yet
    seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: readers compare it across deletions
    payload BLOB NOT NULL                   -- ExportMetricsServiceRequest, zstd
);
"""


def prepare(file: Path) -> None:
    """Create the file, or check that it is one that this version can read and write.

    Raises:
        StoreError: It is not, or the folder cannot be written to.
    """
    if sqlite3.sqlite_version_info < (3, 35):
        raise StoreError(
            f"the store needs SQLite 3.35 or newer (for RETURNING), and this Python has {sqlite3.sqlite_version}"
        )
    try:
        connection = connect(file)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if not version and not tables:
                connection.executescript(
                    f"PRAGMA journal_mode = WAL; BEGIN IMMEDIATE; {_SCHEMA}"
                    f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;",
                )
                return
            application = connection.execute("PRAGMA application_id").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StoreError(f"cannot open the store {file}: {error}") from error
    if application != _APPLICATION_ID:
        raise StoreError(f"{file} is not a tensormeter store; choose another data folder")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{file} was written by a newer tensormeter (schema {version}, this one knows {SCHEMA_VERSION}); "
            "upgrade tensormeter, or choose another data folder",
        )


def connect(file: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode: transactions are begun and ended by statements of ours only.

    The caller makes sure that one thread at a time uses it.
    """
    connection = sqlite3.connect(file, timeout=5, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    if read_only:
        connection.execute("PRAGMA query_only = ON")
    return connection
