"""The tables of spools of version 2, for tests of bringing them up to date."""

__all__ = ["VERSION_2"]

VERSION_2 = """
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
