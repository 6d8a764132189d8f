"""The SQLite file: its tables, its version, and its connections.

Durability: WAL with `synchronous=NORMAL`. A commit survives the death of the process at any instant. After a loss of
power the file is consistent, but the last commits may be missing.

Some tables have an older name on disk than in the code:

- `journal` is the commit log, `batch` has the ids of stored requests, and `damaged` has quarantined requests.
- `chunk` has the segments: compressed blocks of points of one series.
- `sample` has the rollups of full segments.
- A series' column `directory` is the checksum of its list of segments.
- `grp` is the group of a run, `title` is the name that a user gave, and `mark` has numbers for `Store.mark`.
"""

import os
import sqlite3
from pathlib import Path
from typing import Final

from tensormeter.disk.locks import lock_holder
from tensormeter.disk.private import open_file
from tensormeter.errors import StoreError
from tensormeter.server.store.models.errors import StoreFullError
from tensormeter.server.store.sqlite.disk.filesystem_trial import FileSystem
from tensormeter.server.store.sqlite.integrity.file_header import APPLICATION_ID, header_fault
from tensormeter.server.store.sqlite.integrity.suspicion import unreadable
from tensormeter.server.store.sqlite.migration import migrate
from tensormeter.server.store.sqlite.transaction import primary_code

__all__ = ["SCHEMA", "SCHEMA_VERSION", "connect", "holder_of", "prepare"]

SCHEMA_VERSION: Final = 7
_COMPLETE: Final = FileSystem()

SCHEMA: Final = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never reused: the memtable may outlive the row
    project TEXT NOT NULL,
    run_id TEXT NOT NULL,
    name TEXT NOT NULL,                     -- the latest that was sent
    title TEXT,                             -- name that a user gave; NULL: none
    config TEXT NOT NULL DEFAULT '{}',      -- JSON object
    config_time INTEGER NOT NULL DEFAULT 0, -- time of the event that config is from
    state TEXT NOT NULL DEFAULT 'running',  -- from lifecycle events
    attempt INTEGER NOT NULL DEFAULT 1,
    created INTEGER NOT NULL,               -- time of the earliest point or event
    started INTEGER,                        -- time of the earliest start
    ended INTEGER,                          -- time of the latest end, if the run has ended
    updated INTEGER NOT NULL,               -- last arrival of points or events
    newest INTEGER NOT NULL DEFAULT 0,      -- time of the latest point
    stalled INTEGER NOT NULL DEFAULT 0,     -- whether the run is marked as stalled
    tags TEXT,                              -- JSON array; NULL: none given yet
    notes TEXT,
    grp TEXT,
    archived INTEGER NOT NULL DEFAULT 0,
    deleted INTEGER NOT NULL DEFAULT 0,     -- time of deletion; its data is removed in small parts
    series INTEGER NOT NULL DEFAULT 0,      -- number of its series
    points INTEGER NOT NULL DEFAULT 0,      -- number of points in segments
    seal INTEGER,                           -- checksum of the texts, see the module seals
    tally INTEGER,                          -- checksum of the other columns
    UNIQUE (project, run_id)
);
CREATE INDEX run_by_run_id ON run (run_id);
CREATE INDEX run_by_created ON run (created);

CREATE TABLE tombstone (                    -- deleted runs, which senders may send again
    project TEXT NOT NULL,
    run_id TEXT NOT NULL,
    time INTEGER NOT NULL,
    journal INTEGER NOT NULL,               -- last journal row before the deletion
    revived INTEGER NOT NULL DEFAULT 0,     -- whether it has been started again
    PRIMARY KEY (project, run_id)
) WITHOUT ROWID;

CREATE TABLE process (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES run,
    process TEXT NOT NULL,
    resource TEXT NOT NULL,                 -- JSON object
    attempt INTEGER NOT NULL DEFAULT 1,
    started INTEGER,                        -- time of the latest run.start
    ended INTEGER,                          -- time of the latest run.end
    end_state TEXT,
    losses TEXT NOT NULL DEFAULT '{}',      -- JSON object: number of dropped items by reason
    first_step INTEGER,                     -- lowest step, of processes of later attempts than the first
    began INTEGER,                          -- time of the earliest step of such a process
    began_seq INTEGER,                      -- journal row that changed one of these
    seal INTEGER,                           -- of all columns but resource
    resource_seal INTEGER,
    UNIQUE (run, process)
);

CREATE TABLE series (
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never reused
    process INTEGER NOT NULL REFERENCES process,
    metric TEXT NOT NULL,
    kind TEXT NOT NULL,
    scope TEXT NOT NULL,
    attributes TEXT NOT NULL,               -- canonical JSON object
    unit TEXT NOT NULL,
    description TEXT NOT NULL,
    points INTEGER NOT NULL DEFAULT 0,      -- number of points in segments
    last_time INTEGER,                      -- latest point in segments
    last_word INTEGER,
    last_integer INTEGER,
    last_step INTEGER,
    directory INTEGER,                      -- checksum of the list of segments; NULL: unknown
    seal INTEGER,
    UNIQUE (process, metric, kind, scope, attributes)
);

CREATE TABLE summary (                      -- numbers of a metric in segments, over processes and attributes
    run INTEGER NOT NULL REFERENCES run,
    metric TEXT NOT NULL,
    count INTEGER NOT NULL,                 -- points
    numbers INTEGER NOT NULL,               -- points that are not NaN, which the next three columns are about
    total REAL,
    minimum REAL,
    maximum REAL,
    last_time INTEGER NOT NULL,
    last_word INTEGER NOT NULL,
    last_integer INTEGER NOT NULL,
    last_step INTEGER,
    seal INTEGER,
    PRIMARY KEY (run, metric)
) WITHOUT ROWID;
CREATE INDEX summary_by_metric ON summary (metric);

CREATE TABLE chunk (                        -- segments: compressed points of one series
    id INTEGER PRIMARY KEY,
    series INTEGER NOT NULL REFERENCES series,
    seq INTEGER NOT NULL,                   -- order in the series
    n INTEGER NOT NULL,
    t_min INTEGER NOT NULL,
    t_max INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    times BLOB NOT NULL,
    words BLOB NOT NULL,
    integers BLOB NOT NULL,
    seal INTEGER
);
CREATE UNIQUE INDEX chunk_by_series ON chunk (series, seq, n, t_min, t_max);

CREATE TABLE sample (                       -- rollups of full segments of numbers
    chunk INTEGER PRIMARY KEY REFERENCES chunk ON DELETE CASCADE,
    step_min INTEGER,                       -- lowest and highest step; NULL unless every point has one
    step_max INTEGER,
    ascending INTEGER NOT NULL,             -- whether steps never fall
    coarse BLOB NOT NULL,                   -- blocks of 4,096 points
    fine BLOB NOT NULL,                     -- compressed blocks of 512 points
    seal INTEGER,                           -- of the other columns, and the seal of the segment
    coarse_seal INTEGER,
    fine_seal INTEGER
);

CREATE TABLE gap (                          -- times at which senders reported that a series has no value
    id INTEGER PRIMARY KEY,
    series INTEGER NOT NULL REFERENCES series,
    time INTEGER NOT NULL,
    seq INTEGER NOT NULL,                   -- journal row that it came with, or the number of the next one
    seal INTEGER,
    UNIQUE (series, time)
);
CREATE INDEX gap_by_seq ON gap (seq);

CREATE TABLE event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never reused: readers ask for events after an id
    run INTEGER NOT NULL REFERENCES run,
    process INTEGER NOT NULL REFERENCES process,
    time INTEGER NOT NULL,
    name TEXT NOT NULL,
    key TEXT,
    step INTEGER,
    digest BLOB NOT NULL,                   -- SHA-256 that distinguishes events of one time
    body TEXT NOT NULL,                     -- JSON
    attributes TEXT NOT NULL,               -- JSON object
    record TEXT NOT NULL DEFAULT '{}',      -- JSON object: severity, ids and scope, if any
    seal INTEGER,
    UNIQUE (process, time, name, digest)
);
CREATE INDEX event_by_run ON event (run, time);

CREATE TABLE media (
    run INTEGER NOT NULL REFERENCES run,
    digest TEXT NOT NULL,                   -- SHA-256 of data, in hex
    content_type TEXT NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (run, digest)
);

CREATE TABLE batch (                        -- stored requests with an id
    id TEXT PRIMARY KEY,
    digest BLOB NOT NULL,                   -- SHA-256 of signal and payload
    received INTEGER NOT NULL,
    rejected INTEGER NOT NULL,
    message TEXT NOT NULL,
    seal INTEGER
) WITHOUT ROWID;

CREATE TABLE journal (                      -- commit log: requests whose points are in no segment yet
    seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused: readers compare it across deletions
    payload BLOB NOT NULL,                  -- ExportMetricsServiceRequest in zstd
    seal INTEGER
);

CREATE TABLE damaged (                      -- quarantine: journal rows that could not be replayed
    seq INTEGER PRIMARY KEY,
    time INTEGER NOT NULL,                  -- time of the replay
    payload BLOB NOT NULL,
    seal INTEGER
);

CREATE TABLE mark (                         -- numbers of Store.mark
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
"""


def prepare(file: Path, filesystem: FileSystem = _COMPLETE) -> None:
    """Create the file, or migrate a file of an older version.

    Args:
        file: Database.
        filesystem: Capabilities of its file system.

    Raises:
        StoreFullError: The disk is full.
        StoreError: The file is not a store, is damaged or of a newer version, or the folder cannot be written to.
    """
    if sqlite3.sqlite_version_info < (3, 35):
        raise StoreError(
            f"the store needs SQLite 3.35 or newer (for RETURNING), and this Python has {sqlite3.sqlite_version}"
        )
    try:
        # SQLite creates its log and its index with the mode of this file.
        os.close(open_file(file.resolve()))
    except OSError as error:
        raise StoreError(f"cannot open the store {file}: {error.strerror}") from error
    try:
        connection = sqlite3.connect(file, timeout=5, isolation_level=None)
        try:
            if not filesystem.maps:  # an exclusive lock lets SQLite read an existing log without shared memory
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            _configure(connection, filesystem)
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if not version and not tables:
                connection.executescript(
                    f"PRAGMA journal_mode = {filesystem.journal_mode}; BEGIN IMMEDIATE; {SCHEMA}"
                    f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;",
                )
                return
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            fault = header_fault(connection, SCHEMA)
            if fault is not None:
                raise StoreError(f"{file} is damaged: {fault}; restore it from a backup")
            if application == APPLICATION_ID and version < SCHEMA_VERSION:
                migrate(connection, version, SCHEMA, SCHEMA_VERSION)
            if application == APPLICATION_ID:
                connection.execute(f"PRAGMA journal_mode = {filesystem.journal_mode}").fetchall()
        finally:
            connection.close()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        if primary_code(error) == sqlite3.SQLITE_FULL:
            raise StoreFullError(f"cannot open the store {file}: the disk is full; make room there") from error
        raise StoreError(
            unreadable(file) or f"cannot open the store {file}: {error}{holder_of(file, error)}"
        ) from error
    if application != APPLICATION_ID:
        raise StoreError(f"{file} is not a tensormeter store; choose another data folder")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{file} was written by a newer tensormeter (schema {version}, this one supports {SCHEMA_VERSION}); "
            "upgrade tensormeter, or choose another data folder",
        )


def holder_of(file: Path, error: Exception) -> str:
    """Return a suffix for an error's message with the process that has locked the store; "" if a lock is not the cause."""
    if "locked" not in str(error):
        return ""
    files = [file, *(file.with_name(file.name + suffix) for suffix in ("-shm", "-wal"))]
    holders = [lock_holder(holder, ("POSIX", "OFDLCK")) for holder in files]
    identified = [holder for holder in holders if holder[-1].isdigit()]
    return f" ({file} is locked by {(identified or holders)[0]})"


def connect(file: Path, *, read_only: bool = False, filesystem: FileSystem = _COMPLETE) -> sqlite3.Connection:
    """Open a connection in autocommit mode, so that only explicit statements begin and end transactions.

    The caller ensures that one thread at a time uses it.
    """
    connection = sqlite3.connect(file, timeout=filesystem.patience, isolation_level=None, check_same_thread=False)
    try:
        _configure(connection, filesystem)
        if not filesystem.maps and not read_only:
            connection.execute("PRAGMA journal_mode = TRUNCATE").fetchall()
        if read_only:
            connection.execute("PRAGMA query_only = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _configure(connection: sqlite3.Connection, filesystem: FileSystem) -> None:
    connection.execute(f"PRAGMA synchronous = {filesystem.synchronous}")
    connection.execute("PRAGMA foreign_keys = ON")
    # Overwriting deleted data is the default of some builds. It would need as much space in the log as the data.
    connection.execute("PRAGMA secure_delete = FAST").fetchall()
