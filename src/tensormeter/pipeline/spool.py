"""The spool: encoded requests on disk until their receivers have accepted them.

A SQLite database (WAL), one for each run and node.
Requests, the position up to which each lane has been read, and what was said about each process's life go into it in one
transaction, so a row of the ring is in the spool once or not at all, whenever the agent is killed.
A request is deleted when every destination has accepted or rejected it; what was rejected is kept in `quarantine`.

`synchronous=NORMAL`: a killed process loses nothing; a power failure can lose the last transactions.

Threads: each opens a `Spool` of its own. Calls block for the disk, and up to 10 s for another thread's transaction.
"""

import sqlite3
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tensormeter.errors import SpoolError
from tensormeter.exporter import Request, Signal

__all__ = ["Cursor", "Encoded", "Spool"]

VERSION: Final = 2

_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE request (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    signal TEXT NOT NULL,
    items INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE TABLE pending (
    destination TEXT NOT NULL,
    sequence INTEGER NOT NULL REFERENCES request (sequence) ON DELETE CASCADE,
    PRIMARY KEY (destination, sequence)
) WITHOUT ROWID;
CREATE INDEX pending_sequence ON pending (sequence);
CREATE TABLE quarantine (
    destination TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    reason TEXT NOT NULL,
    signal TEXT NOT NULL,
    items INTEGER NOT NULL,
    body BLOB NOT NULL
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
"""


@dataclass(frozen=True)
class Encoded:
    """A request that has no place in the spool yet: see `Request` for the fields."""

    signal: Signal
    body: bytes
    items: int


@dataclass(frozen=True)
class Cursor:
    """How far a lane has been read.

    Attributes:
        position: Bytes, over all laps.
        last_time: Time of the last row, in nanoseconds, after times were made unique.
    """

    position: int = 0
    last_time: int = 0


class Spool:
    """An open spool. Not thread-safe; see the module's text."""

    def __init__(self, path: Path) -> None:
        """Open, or make.

        Raises:
            SpoolError: Not a spool, one of a newer version, or the disk refuses.
        """
        self._path = path
        try:
            self._database = sqlite3.connect(path, timeout=10, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute("PRAGMA foreign_keys = ON")
            with self._transaction():
                version = self._database.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    for statement in _SCHEMA.split(";"):
                        self._database.execute(statement)
                    self._database.execute("INSERT INTO meta VALUES ('id', ?)", (uuid.uuid4().hex,))
                    self._database.execute(f"PRAGMA user_version = {VERSION}")
                elif version != VERSION:
                    raise SpoolError(f"{path} has spool version {version}, this tensormeter reads {VERSION}")
            (self._id,) = self._database.execute("SELECT value FROM meta WHERE key = 'id'").fetchone()
        except sqlite3.Error as error:
            raise SpoolError(f"cannot open the spool {path}: {error}") from error

    def close(self) -> None:
        self._database.close()

    def cursor(self, process: str, lane: int) -> Cursor:
        """How far a lane has been read into this spool."""
        row = self._fetch("SELECT position, last_time FROM cursor WHERE process = ? AND lane = ?", process, lane)
        return Cursor(*row) if row else Cursor()

    def life(self, process: str) -> tuple[bool, bool]:
        """Whether the start and the end of a process have been put into the spool."""
        row = self._fetch("SELECT started, ended FROM process WHERE process = ?", process)
        return (bool(row[0]), bool(row[1])) if row else (False, False)

    def aggregates(self, process: str) -> dict[str, str]:
        """The states of a process's aggregated streams, as `put` was given them."""
        return dict(self._fetch_all("SELECT stream, state FROM aggregate WHERE process = ?", process))

    def put(
        self,
        requests: Sequence[Encoded],
        destinations: Iterable[str],
        process: str,
        cursors: Mapping[int, Cursor],
        *,
        started: bool,
        ended: bool,
        aggregates: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Store requests of one process for every destination, and how far its lanes and its life have come, atomically.

        `aggregates` are the states of those aggregated streams that have changed.

        Raises:
            SpoolError: The disk refuses; then nothing of it is stored.
        """
        with self._transaction():
            for request in requests:
                sequence = self._database.execute(
                    "INSERT INTO request (signal, items, body) VALUES (?, ?, ?)",
                    (request.signal, request.items, request.body),
                ).lastrowid
                self._database.executemany(
                    "INSERT INTO pending VALUES (?, ?)",
                    [(destination, sequence) for destination in destinations],
                )
            self._database.executemany(
                "INSERT OR REPLACE INTO cursor VALUES (?, ?, ?, ?)",
                [(process, lane, cursor.position, cursor.last_time) for lane, cursor in cursors.items()],
            )
            self._database.executemany(
                "INSERT OR REPLACE INTO aggregate VALUES (?, ?, ?)",
                [(process, stream, state) for stream, state in aggregates.items()],
            )
            self._database.execute("INSERT OR REPLACE INTO process VALUES (?, ?, ?)", (process, started, ended))

    def next(self, destination: str) -> tuple[int, Request] | None:
        """The oldest request that a destination has neither accepted nor rejected, with its sequence number."""
        row = self._fetch(
            "SELECT sequence, signal, body, items FROM pending JOIN request USING (sequence) "
            "WHERE destination = ? ORDER BY sequence LIMIT 1",
            destination,
        )
        if row is None:
            return None
        sequence, signal, body, items = row
        return sequence, Request(f"{self._id}-{sequence}", signal, body, items)

    def done(self, destination: str, sequence: int) -> None:
        """The destination has accepted the request."""
        with self._transaction():
            self._retire(destination, sequence)

    def quarantine(self, destination: str, sequence: int, reason: str) -> None:
        """The destination will never accept the request: set it aside, for people to look at."""
        with self._transaction():
            self._database.execute(
                "INSERT INTO quarantine SELECT ?, sequence, ?, signal, items, body FROM request WHERE sequence = ?",
                (destination, reason, sequence),
            )
            self._retire(destination, sequence)

    def pending(self) -> int:
        """Requests that some destination has neither accepted nor rejected, counted once for each."""
        return int(self._fetch("SELECT count(*) FROM pending")[0])  # type: ignore[index]

    def pending_items(self) -> int:
        """Data points and log records in those."""
        return int(self._fetch("SELECT coalesce(sum(items), 0) FROM pending JOIN request USING (sequence)")[0])  # type: ignore[index]

    def quarantined_items(self) -> int:
        """Data points and log records that a destination has rejected."""
        return int(self._fetch("SELECT coalesce(sum(items), 0) FROM quarantine")[0])  # type: ignore[index]

    def _retire(self, destination: str, sequence: int) -> None:
        self._database.execute("DELETE FROM pending WHERE destination = ? AND sequence = ?", (destination, sequence))
        self._database.execute(
            "DELETE FROM request WHERE sequence = ?1 AND NOT EXISTS (SELECT 1 FROM pending WHERE sequence = ?1)",
            (sequence,),
        )

    def _fetch(self, query: str, *arguments: str | int) -> tuple[Any, ...] | None:
        rows = self._fetch_all(query, *arguments)
        return rows[0] if rows else None

    def _fetch_all(self, query: str, *arguments: str | int) -> list[tuple[Any, ...]]:
        try:
            with closing(self._database.execute(query, arguments)) as result:
                return result.fetchall()
        except sqlite3.Error as error:
            raise SpoolError(f"cannot read the spool {self._path}: {error}") from error

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._database, self._path)


class _Transaction:
    """BEGIN IMMEDIATE ... COMMIT, with SQLite's errors as ours."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._database = database
        self._path = path

    def __enter__(self) -> None:
        try:
            self._database.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise SpoolError(f"cannot write to the spool {self._path}: {error}") from error

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._database.execute("COMMIT")
        except sqlite3.Error as failure:
            error = failure
        if error is not None:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise SpoolError(f"cannot write to the spool {self._path}: {error}") from error
