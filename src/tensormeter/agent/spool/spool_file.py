"""The spool's SQLite file: opening, transactions, queries and rows with checksums."""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from tensormeter.agent.spool import schema
from tensormeter.agent.spool.errors import ERRORS, SpoolDamagedError, named
from tensormeter.agent.spool.request import seal
from tensormeter.agent.spool.transaction import Transaction
from tensormeter.disk.mounts import missing_features, network_filesystem
from tensormeter.disk.private import make_file, oddity, open_file
from tensormeter.errors import SpoolError
from tensormeter.settings import Durability

__all__ = ["SpoolFile"]

_SYNCHRONOUS: Final[Mapping[Durability, str]] = {"none": "OFF", "flush": "NORMAL", "fsync": "FULL"}

_SUPER_JOURNAL: Final = bytes.fromhex("d9d505f920a163d7")
"""Last bytes of a rollback journal that names a super-journal. Source: SQLite's file format, section 3."""


class SpoolFile:
    """An open SQLite file with the tables of a spool. It is not thread-safe.

    Attributes:
        path: Path of the file.
        missing: Features that the file system lacks, as returned by `missing_features`.
    """

    def __init__(self, path: Path, durability: Durability) -> None:
        self.path = path
        self.missing: set[str] = set()
        self._durability: Durability = durability
        self._changes: tuple[int, int] | None = None
        self._cache: dict[str, Any] = {}
        """Results of queries, valid until something is written."""

    def _open(self) -> None:
        path = self.path
        for file in (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal"))):
            # SQLite itself reports what is wrong with a link's target.
            if not os.path.islink(file) and (reason := oddity(file)):
                raise SpoolError(f"cannot open the spool: {reason}")
        if _names_another_file(path.with_name(f"{path.name}-journal")):
            raise SpoolError(
                f"{path}-journal refers to another file, which SQLite would delete; tensormeter never creates such a journal, "
                f"so delete {path}-journal"
            )
        with contextlib.suppress(OSError):  # SQLite will report what is wrong
            make_file(path)
            for suffix in ("-wal", "-shm", "-journal"):  # SQLite creates them with the database's mode
                if (companion := path.with_name(path.name + suffix)).exists():
                    make_file(companion)
        try:
            self._database = sqlite3.connect(path, timeout=10, isolation_level=None)
            # A flipped bit may leave invalid UTF-8, which must be readable, so that the checksum can detect the damage.
            self._database.text_factory = _text
        except ERRORS as error:
            raise SpoolError(f"cannot open the spool {path}: {error}") from error
        try:
            self.missing = missing_features(path.parent)
            self._set_synchronous("fsync")
            if "maps" in self.missing:  # SQLite can read a log written elsewhere only in this mode
                self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            log = not self.missing and not network_filesystem(path.parent)
            self._database.execute(f"PRAGMA journal_mode = {'WAL' if log else 'TRUNCATE'}")
            self._database.execute("PRAGMA locking_mode = NORMAL")
            self._database.execute("PRAGMA foreign_keys = ON")
            self._database.execute("PRAGMA trusted_schema = OFF")
            with self.transaction():
                schema.prepare(self._database, path)
            self._set_synchronous(self._durability)
        except ERRORS as error:
            self._database.close()
            raise named(error, f"cannot open the spool {path}", path) from error
        except SpoolError:
            self._database.close()
            raise

    def close(self) -> None:
        """Close the file. If no other connection is open, SQLite's log is checkpointed and synced in every mode."""
        if self._durability == "none":
            with contextlib.suppress(*ERRORS):  # the file is already closed
                self._set_synchronous("flush")
        self._database.close()

    def save_to(self, path: Path) -> None:
        """Write a copy of the database to a path, even if the open file has been deleted meanwhile.

        Raises:
            SpoolError: The disk refuses the write.
        """
        try:
            with contextlib.suppress(OSError):
                make_file(path)
            # SQLite would replay the deleted database's journal files into the copy.
            for suffix in ("-wal", "-shm", "-journal"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            with closing(sqlite3.connect(path)) as copy:
                self._database.backup(copy)
        except OSError as error:
            raise SpoolError(f"cannot copy the spool to {path}: {error}") from error
        except ERRORS as error:
            raise named(error, f"cannot copy the spool to {path}") from error

    def carry_over(self) -> None:
        """Checkpoint and empty SQLite's log, if the disk has room for this."""
        with contextlib.suppress(*ERRORS):
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def check(self) -> None:
        """Check the whole file.

        Raises:
            SpoolDamagedError: The file is damaged.
        """
        try:
            schema.check(self._database, self.path)
        except ERRORS as error:
            raise named(error, f"cannot read the spool {self.path}", self.path) from error

    def transaction(self) -> Transaction:
        """Return a context manager that executes all of its statements or none."""
        return Transaction(self._database, self.path)

    @contextlib.contextmanager
    def _durable(self) -> Iterator[None]:
        """Sync the transactions in the block, and all earlier ones."""
        self._set_synchronous("fsync")
        try:
            yield
        finally:
            self._set_synchronous(self._durability)

    def _set_synchronous(self, durability: Durability) -> None:
        """Make SQLite sync as the durability requires, if the file system supports syncing."""
        mode = "OFF" if "fsync" in self.missing else _SYNCHRONOUS[durability]
        self._database.execute(f"PRAGMA synchronous = {mode}")

    def _write(self, table: str, *row: str | int, replace: bool = True) -> None:
        """Insert a row and its checksum into one of the small tables. Call this in a transaction."""
        marks = ", ".join("?" * (len(row) + 1))
        self._database.execute(
            f"INSERT {'OR REPLACE ' if replace else ''}INTO {table} ({schema.SEALED[table]}, checksum) VALUES ({marks})",
            (*row, seal(*row)),
        )

    def _sealed(self, table: str, condition: str, *arguments: str | int) -> tuple[Any, ...] | None:
        """Return a row of a small table without its checksum; None if there is none.

        Raises:
            SpoolDamagedError: The row does not match its checksum.
        """
        rows = self._all_sealed(table, condition, *arguments)
        return rows[0] if rows else None

    def _all_sealed(self, table: str, condition: str, *arguments: str | int) -> list[tuple[Any, ...]]:
        rows = self._fetch_all(f"SELECT {schema.SEALED[table]}, checksum FROM {table} WHERE {condition}", *arguments)
        if not all(map(schema.is_sealed, rows)):
            raise SpoolDamagedError(
                f"the spool {self.path} is damaged: a row of the table {table} does not match its checksum"
            )
        return [row[:-1] for row in rows]

    def _count(self, query: str) -> int:
        """Return the result of a counting query, which is repeated only if something was written."""
        return int(self._cached(query, lambda: int(self._fetch(query)[0])))  # type: ignore[index]

    def _cached(self, name: str, read: Callable[[], Any]) -> Any:
        """Return the result of `read`, which is cached until something is written."""
        changes = (int(self._fetch("PRAGMA data_version")[0]), self._database.total_changes)  # type: ignore[index]
        if self._changes != changes:
            self._changes = changes
            self._cache.clear()
        if name not in self._cache:
            self._cache[name] = read()
        return self._cache[name]

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(query).fetchall()
        except ERRORS as error:
            raise named(error, f"cannot read the spool {self.path}", self.path) from error

    def _fetch(self, query: str, *arguments: str | int) -> tuple[Any, ...] | None:
        rows = self._fetch_all(query, *arguments)
        return rows[0] if rows else None

    def _fetch_all(self, query: str, *arguments: str | int) -> list[tuple[Any, ...]]:
        try:
            with closing(self._database.execute(query, arguments)) as result:
                return result.fetchall()
        except ERRORS as error:
            raise named(error, f"cannot read the spool {self.path}", self.path) from error

    def bytes_of(self, count: str) -> int:
        """Return the total size in bytes of the pages that an SQLite pragma counts."""
        return int(self._fetch(f"PRAGMA {count}")[0]) * int(self._fetch("PRAGMA page_size")[0])  # type: ignore[index]


def _names_another_file(journal: Path) -> bool:
    """Return whether replaying a journal would make SQLite read and then delete another file.

    SQLite does this for transactions across several databases, which spools never have. Other threads may have the
    spool open. Their locks are on the database, so closing the journal releases none of them.
    """
    try:
        with open(open_file(journal, os.O_RDONLY), "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - len(_SUPER_JOURNAL)))
            return file.read() == _SUPER_JOURNAL
    except OSError:  # there is no journal, or SQLite will report what is wrong
        return False


def _text(content: bytes) -> str:
    return content.decode(errors="replace")
