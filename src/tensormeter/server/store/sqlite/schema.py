"""The SQLite file: its tables, version and connections.

The file uses a write-ahead log (WAL) with `synchronous=NORMAL`. Commits survive a crash of the process. After a power
failure, the file is consistent, but the last commits may be missing. `disk.filesystem_trial` describes the settings for
file systems that do not support this.

Some tables have older names on disk than in the code:

- `journal` is the commit log, `batch` contains the batch IDs of stored requests, and `damaged` contains the quarantined
  requests.
- `chunk` contains segments. A segment is a compressed block of points from one series.
- `sample` contains the rollups of full segments.
- The column `series.directory` is the checksum of the series' list of segments.
- `run.grp` is the run's group, `run.title` is the name set by a user, and `mark` contains the numbers for `Store.mark`.
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

SCHEMA_VERSION: Final = 10
_COMPLETE: Final = FileSystem()

SCHEMA: Final = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never reused because the memtable may outlive the row
    project TEXT NOT NULL,
    run_id TEXT NOT NULL,
    name TEXT NOT NULL,                     -- latest name that was sent; else the run ID
    title TEXT,                             -- name set by a user; NULL if none
    config TEXT NOT NULL DEFAULT '{}',      -- JSON object
    config_time INTEGER NOT NULL DEFAULT 0, -- time of the event that contained config
    state TEXT NOT NULL DEFAULT 'running',  -- from lifecycle events
    attempt INTEGER NOT NULL DEFAULT 1,
    created INTEGER NOT NULL,               -- time of the earliest point or event
    started INTEGER,                        -- time of the earliest start
    ended INTEGER,                          -- time of the latest end, if the run has ended
    updated INTEGER NOT NULL,               -- time when points or events last arrived
    newest INTEGER NOT NULL DEFAULT 0,      -- time of the latest point
    stalled INTEGER NOT NULL DEFAULT 0,     -- whether the run is marked as stalled
    tags TEXT,                              -- JSON array; NULL if not set yet
    notes TEXT,
    grp TEXT,
    archived INTEGER NOT NULL DEFAULT 0,
    deleted INTEGER NOT NULL DEFAULT 0,     -- time of deletion or 0; data is removed in small parts
    series INTEGER NOT NULL DEFAULT 0,      -- number of series
    points INTEGER NOT NULL DEFAULT 0,      -- number of points in segments
    seal INTEGER,                           -- checksum of the text columns, see the module seals
    tally INTEGER,                          -- checksum of the other columns
    job_type TEXT,
    job_type_seal INTEGER,
    UNIQUE (project, run_id)
);
CREATE INDEX run_by_run_id ON run (run_id);
CREATE INDEX run_by_created ON run (created);

CREATE TABLE tombstone (                    -- deleted runs whose senders may still send data
    project TEXT NOT NULL,
    run_id TEXT NOT NULL,
    time INTEGER NOT NULL,
    journal INTEGER NOT NULL,               -- last journal row before the deletion
    revived INTEGER NOT NULL DEFAULT 0,     -- whether the run has been started again
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
    first_step INTEGER,                     -- lowest step; only for attempts after the first
    began INTEGER,                          -- time of the earliest step; only for attempts after the first
    began_seq INTEGER,                      -- journal row that last changed first_step or began
    seal INTEGER,                           -- checksum of the columns except resource
    resource_seal INTEGER,
    UNIQUE (run, process)
);

CREATE TABLE first_step (                   -- lowest step of each metric; only for attempts after the first
    process INTEGER NOT NULL REFERENCES process,
    metric TEXT NOT NULL,
    step INTEGER NOT NULL,
    seq INTEGER NOT NULL,                   -- journal row that last changed the step
    seal INTEGER,
    PRIMARY KEY (process, metric)
) WITHOUT ROWID;

CREATE TABLE result (                       -- what a script stated about its run; a row only for runs with such data
    run INTEGER PRIMARY KEY REFERENCES run,
    summary TEXT NOT NULL DEFAULT '{}',     -- JSON object: values by name
    summary_time INTEGER NOT NULL DEFAULT 0, -- time of the event that contained summary
    definitions TEXT NOT NULL DEFAULT '[]', -- JSON array: definitions of metrics
    definitions_time INTEGER NOT NULL DEFAULT 0,
    parent TEXT,                            -- JSON object: run and step from which the run was forked
    seal INTEGER
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
    directory INTEGER,                      -- checksum of the list of segments; NULL if unknown
    seal INTEGER,
    UNIQUE (process, metric, kind, scope, attributes)
);

CREATE TABLE summary (                      -- totals of a metric in segments over all processes and attributes
    run INTEGER NOT NULL REFERENCES run,
    metric TEXT NOT NULL,
    count INTEGER NOT NULL,                 -- number of points
    numbers INTEGER NOT NULL,               -- number of points that are not NaN; the next three columns cover only these
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
    seq INTEGER NOT NULL,                   -- order within the series
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
    step_min INTEGER,                       -- lowest and highest step; NULL unless every point has a step
    step_max INTEGER,
    ascending INTEGER NOT NULL,             -- whether steps never decrease
    coarse BLOB NOT NULL,                   -- blocks of 4,096 points
    fine BLOB NOT NULL,                     -- compressed blocks of 512 points
    seal INTEGER,                           -- checksum of the other columns and the segment's seal
    coarse_seal INTEGER,
    fine_seal INTEGER
);

CREATE TABLE bundle (                       -- points of the series of a group, see the module bundles
    id INTEGER PRIMARY KEY,
    grp INTEGER NOT NULL,                   -- series.id / 256
    seq INTEGER NOT NULL,                   -- order within the group
    n INTEGER NOT NULL,
    t_min INTEGER NOT NULL,
    t_max INTEGER NOT NULL,
    heads BLOB NOT NULL,                    -- counts, statistics and last points by series
    times BLOB NOT NULL,
    words BLOB NOT NULL,
    integers BLOB NOT NULL,
    seal INTEGER
);
CREATE UNIQUE INDEX bundle_by_group ON bundle (grp, seq, n, t_min, t_max);

CREATE TABLE bundle_group (
    id INTEGER PRIMARY KEY,
    directory INTEGER NOT NULL              -- checksum of the list of bundles
);

CREATE TABLE gap (                          -- times at which senders reported that a series has no value
    id INTEGER PRIMARY KEY,
    series INTEGER NOT NULL REFERENCES series,
    time INTEGER NOT NULL,
    seq INTEGER NOT NULL,                   -- journal row that contains the gap or else the next journal row
    seal INTEGER,
    UNIQUE (series, time)
);
CREATE INDEX gap_by_seq ON gap (seq);

CREATE TABLE event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never reused because readers request events after an ID
    run INTEGER NOT NULL REFERENCES run,
    process INTEGER NOT NULL REFERENCES process,
    time INTEGER NOT NULL,
    name TEXT NOT NULL,
    key TEXT,
    step INTEGER,
    digest BLOB NOT NULL,                   -- SHA-256 that distinguishes events at the same time
    body TEXT NOT NULL,                     -- JSON
    attributes TEXT NOT NULL,               -- JSON object
    record TEXT NOT NULL DEFAULT '{}',      -- JSON object: severity, IDs and scope, if present
    seal INTEGER,
    UNIQUE (process, time, name, digest)
);
CREATE INDEX event_by_run ON event (run, time);

CREATE TABLE log (                          -- log lines: log records without an event name
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never reused because readers request lines after an ID
    run INTEGER NOT NULL REFERENCES run,
    process INTEGER NOT NULL REFERENCES process,
    time INTEGER NOT NULL,
    digest INTEGER NOT NULL,                -- distinguishes lines of a run at the same time
    severity INTEGER NOT NULL,              -- severity number or 0
    stream INTEGER NOT NULL,                -- 1: stdout, 2: stderr, 0: neither
    body TEXT NOT NULL,                     -- text, or JSON as stated in record
    attributes TEXT NOT NULL,               -- JSON object or empty
    record TEXT NOT NULL,                   -- JSON object or empty: other fields
    seal INTEGER
);
CREATE UNIQUE INDEX log_by_time ON log (run, time, digest);

CREATE TABLE log_usage (                    -- log lines of a run
    run INTEGER PRIMARY KEY REFERENCES run,
    lines INTEGER NOT NULL,
    size INTEGER NOT NULL,                  -- bytes of body, attributes and record
    evicted INTEGER NOT NULL,               -- number of lines that were deleted because there were too many
    last INTEGER NOT NULL,                  -- ID of the line that arrived last
    seal INTEGER
);

CREATE TABLE media (
    run INTEGER NOT NULL REFERENCES run,
    digest TEXT NOT NULL,                   -- hexadecimal SHA-256 of data
    content_type TEXT NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (run, digest)
);

CREATE TABLE batch (                        -- stored requests with an ID
    id TEXT PRIMARY KEY,
    digest BLOB NOT NULL,                   -- SHA-256 of signal and payload
    received INTEGER NOT NULL,
    rejected INTEGER NOT NULL,
    message TEXT NOT NULL,
    seal INTEGER
) WITHOUT ROWID;

CREATE TABLE journal (                      -- commit log: requests whose points are not yet in segments
    seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused because readers compare it across deletions
    payload BLOB NOT NULL,                  -- ExportMetricsServiceRequest compressed with zstd
    seal INTEGER
);

CREATE TABLE damaged (                      -- quarantine: journal rows that could not be replayed
    seq INTEGER PRIMARY KEY,
    time INTEGER NOT NULL,                  -- time of the replay
    payload BLOB NOT NULL,
    seal INTEGER
);

CREATE TABLE mark (                         -- numbers for Store.mark
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
"""


def prepare(file: Path, filesystem: FileSystem = _COMPLETE) -> None:
    """Create the file, or migrate a file from an older version.

    Args:
        file: Path of the database.
        filesystem: Capabilities of the database's file system.

    Raises:
        StoreFullError: The disk is full.
        StoreError: The file is not a store, is damaged, or has a newer version; or the folder is not writable.
    """
    if sqlite3.sqlite_version_info < (3, 35):
        raise StoreError(
            f"the store needs SQLite 3.35 or newer (for RETURNING), but this Python has {sqlite3.sqlite_version}"
        )
    try:
        # SQLite creates its log and index with the same mode as this file.
        os.close(open_file(file.resolve()))
    except OSError as error:
        raise StoreError(f"cannot open the store {file}: {error.strerror}") from error
    try:
        connection = sqlite3.connect(file, timeout=5, isolation_level=None)
        try:
            if not filesystem.maps:  # under an exclusive lock, SQLite can read an existing log without shared memory
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
            raise StoreFullError(f"cannot open the store {file}: the disk is full; free some space") from error
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
    """Return the part of an error message that names the process holding a lock; "" if a lock is not the cause."""
    if "locked" not in str(error):
        return ""
    files = [file, *(file.with_name(file.name + suffix) for suffix in ("-shm", "-wal"))]
    holders = [lock_holder(holder, ("POSIX", "OFDLCK")) for holder in files]
    identified = [holder for holder in holders if holder[-1].isdigit()]
    return f" ({file} is locked by {(identified or holders)[0]})"


def connect(file: Path, *, read_only: bool = False, filesystem: FileSystem = _COMPLETE) -> sqlite3.Connection:
    """Open a connection in autocommit mode, in which only explicit statements begin and end transactions.

    Only one thread at a time may use the connection.
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
    # Some SQLite builds overwrite deleted data by default, which takes as much space in the log as the data itself.
    connection.execute("PRAGMA secure_delete = FAST").fetchall()
