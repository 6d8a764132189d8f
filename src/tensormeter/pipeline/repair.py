"""Opening a spool that may be damaged: cut off by a full disk, or with bits that have changed.

What cannot be used is moved aside, and every request that can still be read goes into a new spool, under its old id.
A request that only some of its destinations had accepted may be delivered to all of them again, under the same id.
"""

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from tensormeter.errors import SpoolError
from tensormeter.logger import get_logger
from tensormeter.pipeline.errors import ERRORS, SpoolDamagedError
from tensormeter.pipeline.request import checksum
from tensormeter.pipeline.spool import Spool
from tensormeter.private import open_file
from tensormeter.settings import Durability

__all__ = ["open_repaired"]

logger: Final = get_logger("tensormeter.agent")

_MOST_FAILURES: Final = 5000
"""Numbers that are tried, one after the other, behind a place that cannot be read."""

_HEADER: Final = (
    # What stands at these places of every spool: file format of SQLite, section 1.3.
    (0, b"SQLite format 3\0\x10\x00"),
    (20, b"\x00\x40\x20\x20"),
    (44, b"\x00\x00\x00\x04"),
    (56, b"\x00\x00\x00\x01"),
)


def open_repaired(
    path: Path,
    destinations: Iterable[str],
    *,
    durability: Durability = "flush",
    max_bytes: int | None = None,
    damage: str = "",
) -> Spool:
    """Open a spool, and repair it first if need be. Nobody else may have it open.

    Args:
        path: Of the spool.
        destinations: For whom a request is when that can no longer be read.
        durability: As for `Spool`.
        max_bytes: As for `Spool`.
        damage: What somebody came upon who worked with it: then it is repaired, whatever a look at it says. Not everything
            that is wrong with an index is seen before it is used.

    Raises:
        SpoolError: The disk refuses, or the spool is of another version.
    """
    if not damage:
        spool: Spool | None = None
        try:
            spool = Spool(path, durability=durability, max_bytes=max_bytes)
            spool.check()
            return spool
        except SpoolDamagedError as error:
            damage = str(error)
            if spool is not None:
                spool.close()
        except BaseException:
            if spool is not None:
                spool.close()
            raise
    aside = _move_aside(path)
    spool = Spool(path, durability=durability, max_bytes=max_bytes)
    with spool.transaction():
        saved, lost = _salvage(aside, spool._database, list(destinations))
    spool.count_loss("damaged", lost)
    logger.error(
        "%s; it is now %s. %d requests could be saved, %s could not",
        damage,
        aside.name,
        saved,
        f"at least {lost}" if lost else "none that is known of",
    )
    return spool


def _move_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    for suffix in ("-wal", "-journal"):
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.rename(aside.with_name(aside.name + suffix))
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    path.rename(aside)
    return aside


def _opened(aside: Path) -> int:
    try:
        return open_file(aside, os.O_RDWR)
    except OSError as error:  # no link is followed: what is written there would change another file
        raise SpoolError(f"cannot repair the spool {aside}: {error}") from error


def _salvage(aside: Path, new: sqlite3.Connection, destinations: list[str]) -> tuple[int, int]:
    """Copy what can be read. Returns how many requests are saved, and how many are known to be lost."""
    with open(_opened(aside), "r+b") as file:
        size = file.seek(0, 2)
        for offset, right in _HEADER:
            if size >= 100:
                file.seek(offset)
                file.write(right)
        if size >= 100:
            logged = aside.with_name(aside.name + "-wal").exists()
            file.seek(18)
            file.write(b"\x02\x02" if logged else b"\x01\x01")
    with closing(sqlite3.connect(aside, isolation_level=None)) as old:
        old.text_factory = lambda text: text.decode(errors="replace")
        try:
            # Lets SQLite read a file that is shorter than its header says.
            old.execute("PRAGMA writable_schema = ON")
            old.execute("PRAGMA cell_size_check = ON")
            list(old.execute("SELECT name FROM sqlite_master"))
        except ERRORS:
            return 0, 1
        requests = list(_readable(old, "sequence, id, signal, items, priority, thinned, checksum, body", "request"))
        pending, whole = _rows(old, "SELECT destination, sequence FROM pending")
        # What is accepted, but not known to be on the receiver's disk, is sent again. If it cannot be read, nothing is lost.
        kept, _ = _rows(old, "SELECT destination, sequence FROM kept")
        good = [row for row in requests if _good(row)]
        known = {row[0] for row in good}
        lost = max(len({sequence for _, sequence in pending} - known), len(requests) - len(good), 0 if whole else 1)
        if whole:
            # A name that nobody has is damaged, or of former settings: rather to all than to nobody.
            waiting = [
                (name, sequence)
                for destination, sequence in {*pending, *kept}
                if sequence in known
                for name in ([destination] if destination in destinations else destinations)
            ]
            good = [row for row in good if row[0] in {sequence for _, sequence in waiting}]
        else:
            waiting = [(destination, row[0]) for row in good for destination in destinations]
        new.executemany(
            "INSERT INTO request (sequence, id, signal, items, priority, thinned, checksum, body) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            good,
        )
        new.executemany("INSERT OR IGNORE INTO pending VALUES (?, ?)", waiting)
        for table, kinds in (
            ("cursor", (str, int, int, int)),
            ("process", (str, int, int)),
            ("aggregate", (str, str, str)),
            ("origin", (str, str)),
            ("loss", (str, int)),
        ):
            rows = [row for row in _rows(old, f"SELECT * FROM {table}")[0] if _of(row, kinds)]
            new.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(kinds))})", rows)
        columns = "destination, id, reason, signal, items, body"
        rejected = [row[1:] for row in _readable(old, f"number, {columns}", "quarantine", key="number")]
        new.executemany(
            f"INSERT OR IGNORE INTO quarantine ({columns}) VALUES (?, ?, ?, ?, ?, ?)",
            [row for row in rejected if _of(row, (str, str, str, str, int, bytes))],
        )
    return len(good), lost


def _readable(
    database: sqlite3.Connection, columns: str, table: str, *, key: str = "sequence"
) -> Iterator[tuple[Any, ...]]:
    """Row by row, past the places where the table cannot be read."""
    at, failures = -1, 0
    while failures < _MOST_FAILURES:
        try:
            row = database.execute(
                f"SELECT {columns} FROM {table} WHERE {key} > ? ORDER BY {key} LIMIT 1", (at,)
            ).fetchone()
        except ERRORS:
            failures += 1
            at += 1
            continue
        if row is None:
            return
        if not isinstance(row[0], int) or row[0] <= at:
            at += 1
            failures += 1
            continue
        failures = 0
        at = row[0]
        yield row


def _rows(database: sqlite3.Connection, query: str) -> tuple[list[tuple[Any, ...]], bool]:
    """The rows up to the first place that cannot be read, and whether there was none."""
    rows: list[tuple[Any, ...]] = []
    try:
        rows.extend(database.execute(query))
    except ERRORS:
        return rows, False
    return rows, True


def _good(row: tuple[Any, ...]) -> bool:
    _, batch, signal, items, priority, thinned, expected, body = row
    if not _of((batch, signal, items, priority, thinned, body), (str, str, int, int, int, bytes)):
        return False
    return bool(checksum(batch, signal, items, body) == expected)


def _of(row: tuple[Any, ...], kinds: tuple[type, ...]) -> bool:
    return len(row) == len(kinds) and all(isinstance(value, kind) for value, kind in zip(row, kinds, strict=True))
