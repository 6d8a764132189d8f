"""Maintenance of a data folder: compaction while no server uses the store, and backup at any time."""

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tensormeter.errors import StoreError
from tensormeter.server.store.models.errors import DamagedError, StoreUnavailableError, SuspectedDamageError
from tensormeter.server.store.models.points import Column
from tensormeter.server.store.sqlite.integrity.damage import name_damage
from tensormeter.server.store.sqlite.integrity.missing_file import missing_store
from tensormeter.server.store.sqlite.integrity.seals import seal_changes
from tensormeter.server.store.sqlite.points.rollups import build_rollups, find_missing_rollups, insert_rollups
from tensormeter.server.store.sqlite.points.segment_rows import find_segments, insert_segments, spans, update_directory
from tensormeter.server.store.sqlite.points.segments import encode_segment, segment_capacity, segment_points
from tensormeter.server.store.sqlite.schema import connect, holder_of
from tensormeter.server.store.sqlite.store import SqliteStore
from tensormeter.server.store.sqlite.transaction import mapped_errors, writing

__all__ = ["CompactionResult", "back_up", "compact"]

_FILE: Final = "tensormeter.db"
_PAGES: Final = 1024
"""Number of 4 KiB pages that a backup copies before it lets other processes use the file."""

_log = logging.getLogger(__name__)

_BACKUP_PATIENCE: Final = 30.0
"""Maximum seconds for a backup to wait for a lock on the store."""


@dataclass(frozen=True)
class CompactionResult:
    """The result of a compaction.

    Attributes:
        segments_before, segments_after: Number of segments.
        bytes_before, bytes_after: Size of the file in bytes.
        damaged: Number of damaged series, which were left unchanged.
    """

    segments_before: int
    segments_after: int
    bytes_before: int
    bytes_after: int
    damaged: int = 0


def compact(folder: Path) -> CompactionResult:
    """Flush the commit log, merge each series into as few segments as possible, and free unused space.

    No server may use the folder in the meantime. The file is rewritten, so the disk needs space for a second copy. No
    data is lost if the process is killed.

    Raises:
        StoreError: The folder is in use, contains no store, or is not writable.
    """
    file = _store_file(folder)
    store = SqliteStore(folder, flush_interval=3600)
    try:
        store.flush()
        before = file.stat().st_size
        connection = connect(file)
        try:
            seal_changes(connection)
            with _name_holder(file), mapped_errors("compact"):
                segments = _count(connection)
                damaged = 0
                for (series,) in connection.execute("SELECT DISTINCT series FROM chunk").fetchall():
                    try:
                        _merge(connection, series)
                    except (DamagedError, SuspectedDamageError) as error:
                        damaged += 1
                        cause = name_damage(connection, error) if isinstance(error, DamagedError) else error.__cause__
                        _log.warning("tensormeter: could not compact series %d: %s", series, cause)
                for key in find_missing_rollups(connection):
                    try:
                        rollups = build_rollups(connection, [key])
                    except (DamagedError, SuspectedDamageError):
                        continue
                    with writing(connection):
                        insert_rollups(connection, rollups)
                after = _count(connection)
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            connection.close()
    finally:
        store.close()
    return CompactionResult(segments, after, before, file.stat().st_size, damaged)


def back_up(folder: Path, target: Path) -> int:
    """Copy the store in a folder to a new file, even while a server uses it, and return the copy's size in bytes.

    The copy is a consistent snapshot that includes the commit log. To use it, place it in an empty folder as
    `tensormeter.db`.

    Raises:
        StoreError: The folder contains no store, the store is damaged, or `target` exists or is not writable.
        StoreUnavailableError: The store stays locked, or the disk failed.
    """
    file = _store_file(folder)
    try:
        # Create the file exclusively and accessible only to this user, because it contains all logged data.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise StoreError(f"cannot create {target}: {error.strerror}; choose a name that does not exist yet") from None
    try:
        source = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
        copy = sqlite3.connect(target)
        try:
            with _name_holder(file), mapped_errors("copy"):
                source.execute(
                    "BEGIN"
                )  # one snapshot; otherwise, a busy server's commits would keep restarting the copy
                source.execute("SELECT count(*) FROM run").fetchall()
                source.backup(copy, pages=_PAGES, progress=_Progress())
                problems = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
        finally:
            copy.close()
            source.close()
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    if problems != "ok":
        target.unlink(missing_ok=True)
        raise StoreError(
            f"the copy of {file} is damaged ({problems}), so the store is damaged, too; restore it from a backup"
        )
    return target.stat().st_size


@contextmanager
def _name_holder(file: Path) -> Iterator[None]:
    """Add the name of the process that has locked the store to error messages."""
    try:
        yield
    except StoreUnavailableError as error:
        raise StoreUnavailableError(f"{error}{holder_of(file, error)}") from error


class _Progress:
    """A callback that stops a backup without progress. Without this callback, SQLite would wait for a lock forever."""

    def __init__(self) -> None:
        self._remaining = -1
        self._moved = time.monotonic()

    def __call__(self, status: int, remaining: int, total: int) -> None:
        """Check the progress; see `sqlite3.Connection.backup`. Raises StoreUnavailableError."""
        now = time.monotonic()
        if remaining != self._remaining:
            self._remaining, self._moved = remaining, now
        elif now - self._moved > _BACKUP_PATIENCE:
            raise StoreUnavailableError("cannot copy the store: it is locked")


def _merge(connection: sqlite3.Connection, series: int) -> None:
    """Merge the segments of a series. Raises DamagedError and changes nothing if a segment is damaged."""
    all_spans = spans(connection, series)
    decoded: list[tuple[int, Column]] = []
    for span, segment in zip(all_spans, find_segments(connection, series, all_spans), strict=True):
        points = segment_points(segment)
        if decoded or span.n != segment_capacity(points):  # keep leading full segments unchanged
            decoded.append((span.seq, points))
    if len(decoded) < 2:
        return
    points = type(decoded[0][1]).concat([points for _, points in decoded]).distinct()
    full = segment_capacity(points)
    merged = [encode_segment(points[i : i + full]) for i in range(0, len(points), full)]
    first = decoded[0][0]
    with writing(connection):
        connection.execute("DELETE FROM chunk WHERE series = ? AND seq >= ?", (series, first))
        insert_segments(connection, ((series, first + i, segment) for i, segment in enumerate(merged)))
        update_directory(connection, series)


def _count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM chunk").fetchone()[0])


def _store_file(folder: Path) -> Path:
    file = folder / _FILE
    missing = missing_store(file)
    if missing is not None:
        raise StoreError(missing)
    if not file.is_file():
        raise StoreError(f"no store in {folder}; set --data to the server's data folder")
    return file
