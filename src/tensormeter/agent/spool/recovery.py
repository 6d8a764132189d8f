"""Opening of a spool that may be damaged: a full disk may have truncated it, or bits may have flipped.

The damaged file is renamed, and every readable request is copied into a new spool with its old ID. A request that only
some of its destinations have accepted may be resent to all of them with the same ID. Losses count as `damaged`: all
items of a lost request if their number is known, and at least one.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from tensormeter.agent.spool.errors import ERRORS, SpoolDamagedError
from tensormeter.agent.spool.request import checksum, seal
from tensormeter.agent.spool.schema import HIGHEST_SEQUENCE, OF_VERSION_2, SEALED, is_sealed, of_version_2
from tensormeter.agent.spool.spool import Spool
from tensormeter.agent.spool.wal_check import LogState, mend_log
from tensormeter.disk.private import open_file
from tensormeter.errors import SpoolError
from tensormeter.logger import get_logger
from tensormeter.settings import Durability

__all__ = ["open_left", "open_repaired"]

logger: Final = get_logger("tensormeter.agent")

_MOST_FAILURES: Final = 5000
"""Maximum number of sequence numbers to try, one by one, after an unreadable part."""

_SMALLEST: Final = 100
"""Size of SQLite's header in bytes. A shorter file has no contents."""

_HEADER: Final = (
    # Bytes that every spool has at these offsets. Source: SQLite's file format, section 1.3.
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
    """Open a spool, and repair it first if it is damaged. No other process may have it open.

    Args:
        path: Path of the spool.
        destinations: Destinations for requests whose own destinations can no longer be read.
        durability: Durability, as for `Spool`.
        max_bytes: Maximum size in bytes, as for `Spool`.
        damage: Description of damage that was detected in use. If given, the spool is repaired without a check, because
            a damaged index may be noticed only when it is used.

    Raises:
        SpoolError: The disk refuses access, or the spool was written by another version.
    """
    missing = False
    if not damage:
        spool: Spool | None = None
        log = mend_log(path)
        missing = log.lost
        try:
            spool = _open_behind(log, path, durability=durability, max_bytes=max_bytes)
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
        try:
            os.close(_opened(aside))
        except SpoolError as error:  # a link, or something else that no run creates: the contents are gone
            damage = f"{damage}; {error}"
            saved, lost = 0, 1
        else:
            saved, lost = _salvage(aside, spool._database, list(destinations))
        lost = max(lost, int(missing and not spool.losses().get("damaged")))
    spool.count_loss("damaged", lost)
    logger.error(
        "%s; the file was renamed to %s. %d requests were saved; %s",
        damage,
        aside.name,
        saved,
        f"at least {lost} items are lost and count as damaged" if lost else "nothing is known to be lost",
    )
    if not lost:
        _remove(aside)
    return spool


def open_left(path: Path, *, durability: Durability = "flush", max_bytes: int | None = None) -> Spool:
    """Open a spool as its last agent left it, and count data missing from the end of SQLite's log as lost.

    No agent may have the spool open.

    Args:
        path: Path of the spool.
        durability: Durability, as for `Spool`.
        max_bytes: Maximum size in bytes, as for `Spool`.

    Raises:
        SpoolError: The spool cannot be opened.
    """
    return _open_behind(mend_log(path), path, durability=durability, max_bytes=max_bytes)


def _open_behind(log: LogState, path: Path, *, durability: Durability, max_bytes: int | None) -> Spool:
    gone = _is_gone(path)
    spool = Spool(path, durability=durability, max_bytes=max_bytes)
    try:
        if log.torn:
            spool.carry_over()
        if gone:
            logger.error("the spool %s is missing or empty; its contents count as lost (damaged)", path)
        if log.lost or gone:
            spool.count_loss("damaged", 1)
    except BaseException:
        spool.close()
        raise
    return spool


def _is_gone(path: Path) -> bool:
    """Return whether a spool is gone, although the reserve next to it shows that there was one."""
    try:
        if path.stat().st_size >= _SMALLEST:
            return False
    except FileNotFoundError:
        pass
    except OSError:  # SQLite will report what is wrong
        return False
    return path.with_name("reserve").exists()


def _remove(aside: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(OSError):
            aside.with_name(aside.name + suffix).unlink(missing_ok=True)


def _move_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    for suffix in ("-wal", "-journal"):
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            companion.rename(aside.with_name(aside.name + suffix))
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    path.rename(aside)
    return aside


def _opened(aside: Path) -> int:
    try:
        return open_file(aside, os.O_RDWR)
    except OSError as error:  # links are not followed: writing through one would change another file
        raise SpoolError(f"cannot repair the spool {aside}: {error}") from error


def _salvage(aside: Path, new: sqlite3.Connection, destinations: list[str]) -> tuple[int, int]:
    """Copy the readable rows, and return the numbers of saved requests and of items known to be lost."""
    _mend_header(aside)
    with closing(sqlite3.connect(aside, isolation_level=None)) as old:
        old.text_factory = lambda text: text.decode(errors="replace")
        try:
            # Let SQLite read a file that is shorter than its header says.
            old.execute("PRAGMA writable_schema = ON")
            old.execute("PRAGMA cell_size_check = ON")
            list(old.execute("SELECT name FROM sqlite_master"))
        except ERRORS:
            return 0, 1
        tables = _Tables(old)
        saved, lost = _salvage_requests(old, tables, new, destinations)
        for table in ("cursor", "process", "aggregate", "loss", "report", "origin"):
            rows, is_whole = tables.read(table)
            tables.write(new, table, rows)
            if not is_whole:
                logger.error("cannot read some rows of table %s in %s", table, aside)
                # Only sums, which restart, and loss counts are lost. Rings contain their cursors, too, and the agent
                # describes processes again.
                lost += table in ("aggregate", "loss")
        rejected = tables.rejected()
        columns = "destination, id, reason, signal, items, priority, checksum, body"
        readable = [row for row in rejected if _of(row, (str, str, str, str, int, int, int, bytes))]
        new.executemany(
            f"INSERT OR IGNORE INTO quarantine ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            readable,
        )
        lost += len(rejected) - len(readable) + (not _is_whole(old, "quarantine"))
    return saved, lost


def _mend_header(aside: Path) -> None:
    """Write the parts of the file's header that are identical in every spool."""
    with open(_opened(aside), "r+b") as file:
        size = file.seek(0, 2)
        if size < _SMALLEST:
            return
        for offset, right in _HEADER:
            file.seek(offset)
            file.write(right)
        has_log = aside.with_name(aside.name + "-wal").exists()
        file.seek(18)
        file.write(b"\x02\x02" if has_log else b"\x01\x01")


def _salvage_requests(
    old: sqlite3.Connection, tables: "_Tables", new: sqlite3.Connection, destinations: list[str]
) -> tuple[int, int]:
    """Copy requests and their pending destinations, and return the same counts as `_salvage`."""
    requests = list(_readable(old, "sequence, id, signal, items, priority, thinned, checksum, body", "request"))
    good = [row for row in requests if _good(row)]
    sizes = {row[0]: row[3] for row in good}
    pending, is_whole = tables.read("pending")
    destinations = list(dict.fromkeys([*(row[0] for row in pending), *destinations]))
    is_whole = is_whole and _is_whole(old, "pending")
    missing: dict[int, int] = {}
    for _, sequence, items, _ in pending:
        if sequence not in sizes:
            missing[sequence] = max(1, items, missing.get(sequence, 1))
    # Accepted requests that are not known to be durable are resent. An unreadable one does not count as lost.
    kept, _ = tables.read("kept")
    unknown = {row[0] for row in requests} - sizes.keys() - missing.keys() - {row[1] for row in kept}
    lost = sum(missing.values()) + len(unknown)
    waiting = [row for row in pending if row[1] in sizes]
    waiting += [(destination, sequence, sizes[sequence], 0) for destination, sequence, *_ in kept if sequence in sizes]
    needed = {row[1] for row in waiting}
    # If parts of `pending` are missing, send a request to all destinations rather than to none.
    waiting += [
        (destination, row[0], row[3], 0)
        for row in good
        if not is_whole or row[0] not in needed
        for destination in destinations
    ]
    if not is_whole:
        lost = max(lost, 1)
    new.executemany(
        "INSERT INTO request (sequence, id, signal, items, priority, thinned, checksum, body) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        good,
    )
    tables.write(new, "pending", waiting)
    # Without an epoch, requests wait again and are sent in the same pieces, whose IDs the receiver may know.
    tables.write(new, "kept", [(row[0], row[1], "", 0, row[4]) for row in kept if row[1] in sizes])
    return len(good), lost


class _Tables:
    """Reader of a damaged spool's tables, except `request`. The spool may have the schema of version 2."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        try:
            self._columns = {
                table: {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
                for table in (*SEALED, "quarantine")
            }
        except ERRORS:
            self._columns = {}

    def read(self, table: str) -> tuple[list[tuple[Any, ...]], bool]:
        """Return the readable rows that match their checksums, and whether these are all of the table's rows."""
        columns = self._columns.get(table)
        if columns == set():  # version 2 did not have this table
            return [], True
        if columns is not None and "checksum" not in columns:
            rows, whole = _rows(self._database, OF_VERSION_2[table])
            sound = [row for row in rows if all(isinstance(value, str | int) for value in row)]
            return sound, whole and len(sound) == len(rows)
        rows, whole = _rows(self._database, f"SELECT {SEALED[table]}, checksum FROM {table}")
        sound = [row[:-1] for row in rows if is_sealed(row)]
        return sound, whole and len(sound) == len(rows)

    @staticmethod
    def write(database: sqlite3.Connection, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
        marks = ", ".join("?" * (SEALED[table].count(",") + 2))
        database.executemany(
            f"INSERT OR IGNORE INTO {table} ({SEALED[table]}, checksum) VALUES ({marks})",
            [(*row, seal(*row)) for row in rows],
        )

    def rejected(self) -> list[tuple[Any, ...]]:
        """Return the readable rows of `quarantine` without the column `number`."""
        if "checksum" in self._columns.get("quarantine", {"checksum"}):
            columns = "number, destination, id, reason, signal, items, priority, checksum, body"
            return [row[1:] for row in _readable(self._database, columns, "quarantine", key="number")]
        columns = "number, destination, id, reason, signal, items, body"
        rows = [row[1:] for row in _readable(self._database, columns, "quarantine", key="number")]
        return [of_version_2(row) if _of(row, (str, str, str, str, int, bytes)) else row for row in rows]


def _is_whole(database: sqlite3.Connection, table: str) -> bool:
    """Return whether a table and its indexes pass SQLite's integrity check."""
    try:
        return bool(database.execute(f"PRAGMA integrity_check({table})").fetchone() == ("ok",))
    except ERRORS:
        return False


def _readable(
    database: sqlite3.Connection, columns: str, table: str, *, key: str = "sequence"
) -> Iterator[tuple[Any, ...]]:
    """Yield a table's rows one by one, skipping the parts that cannot be read."""
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
    """Return the rows before the first unreadable one, and whether all rows could be read."""
    rows: list[tuple[Any, ...]] = []
    try:
        rows.extend(database.execute(query))
    except ERRORS:
        return rows, False
    return rows, True


def _good(row: tuple[Any, ...]) -> bool:
    sequence, batch, signal, items, priority, thinned, expected, body = row
    if not 0 < sequence < HIGHEST_SEQUENCE or not _of(
        (batch, signal, items, priority, thinned, body), (str, str, int, int, int, bytes)
    ):
        return False
    return bool(checksum(batch, signal, items, body) == expected)


def _of(row: tuple[Any, ...], kinds: tuple[type, ...]) -> bool:
    return len(row) == len(kinds) and all(isinstance(value, kind) for value, kind in zip(row, kinds, strict=True))
