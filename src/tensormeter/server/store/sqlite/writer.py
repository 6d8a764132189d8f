"""Writes to the SQLite file: connections, transactions, and the space that they need."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import TypeVar

from tensormeter.errors import StoreError
from tensormeter.server.store.background import Background
from tensormeter.server.store.models.durability import ServerDurability
from tensormeter.server.store.models.errors import StoreUnavailableError
from tensormeter.server.store.models.runs import RunRef
from tensormeter.server.store.sqlite.changed_runs import ChangeTracker
from tensormeter.server.store.sqlite.disk.checkpoint import WriteAheadLog
from tensormeter.server.store.sqlite.disk.disk_state import DiskMonitor
from tensormeter.server.store.sqlite.disk.durability import LogSyncer
from tensormeter.server.store.sqlite.disk.filesystem_trial import FileSystem
from tensormeter.server.store.sqlite.disk.free_space import FreeSpace
from tensormeter.server.store.sqlite.integrity.seals import seal_changes
from tensormeter.server.store.sqlite.queries import SqliteQueries
from tensormeter.server.store.sqlite.schema import connect
from tensormeter.server.store.sqlite.tables.catalog import Catalog, find_run
from tensormeter.server.store.sqlite.transaction import mapped_errors, writing

__all__ = ["SqliteWriter"]

_T = TypeVar("_T")


class SqliteWriter(SqliteQueries):
    """The transactions of `SqliteStore`, which opens the connections."""

    syncer: LogSyncer
    _writer: sqlite3.Connection
    _flusher: sqlite3.Connection
    _writing: threading.Lock
    _stale: bool
    _catalog: Catalog
    _changes: ChangeTracker
    _durability: ServerDurability
    _space: FreeSpace
    _log: WriteAheadLog
    _disk: DiskMonitor
    _background: Background

    def mark(self, name: str, value: int | None = None) -> int:
        """See `Store`."""
        if value is not None:
            with self._writing:
                self._check_open()
                with self._transaction():
                    self._writer.execute("INSERT OR REPLACE INTO mark (name, value) VALUES (?, ?)", (name, value))
            return value
        return self._mark(name)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._renew_writer()
            with self._checking_damage(), writing(self._writer):
                yield
        except StoreUnavailableError as error:
            self._catalog.forget()
            self._disk.failed(error)
            self._stale = True
            raise
        except BaseException:
            self._catalog.forget()
            raise
        self._changes.publish()
        self.syncer.note_commit()
        self._disk.worked()

    @contextmanager
    def _made_durable(self) -> Iterator[None]:
        """If `durability` is `always`, sync the commits inside the block on exit. The caller must hold no lock."""
        yield
        if self._durability == "always":
            self.syncer.settle()

    @contextmanager
    def _change(self, ref: RunRef) -> Iterator[int]:
        with self._made_durable(), self._writing:
            self._check_open()
            with self._transaction():
                yield find_run(self._writer, ref.run_id, ref.project)

    def _carry_over(self) -> bool:
        """Copy SQLite's log to the database, and return whether the copy is complete."""
        with mapped_errors("checkpoint"), closing(self._connect()) as connection:
            busy, logged, carried = connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
            return not busy and logged == carried

    def _connect(self) -> sqlite3.Connection:
        return connect(self._file, filesystem=self._filesystem)

    def _connect_writer(self) -> sqlite3.Connection:
        connection = self._connect()
        try:
            seal_changes(connection)
            self._changes.watch(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _renew_writer(self) -> None:
        """Open a new connection to write with if the disk has failed, because descriptors may be stale."""
        if self._stale:
            with mapped_errors("open"):
                old, self._writer = self._writer, self._connect_writer()
                self._catalog.forget(self._writer)
                self._stale = False
                old.close()

    def _renew_flusher(self) -> None:
        if self._disk.failing:
            with mapped_errors("open"):
                old, self._flusher = self._flusher, self._connect()
                old.close()

    def _leave_out_syncs(self, error: StoreError) -> None:
        """Continue without syncs if the error shows that the file system cannot sync."""
        if getattr(error.__cause__, "sqlite_errorcode", 0) != sqlite3.SQLITE_IOERR_FSYNC or not self._filesystem.syncs:
            return
        with suppress(StoreError):
            if not FileSystem.examine(self._file.parent).syncs:
                self.syncer.give_up()  # before SQLite stops syncing
                self._filesystem = replace(self._filesystem, syncs=False)
                with self._writing:
                    self._writer.execute(f"PRAGMA synchronous = {self._filesystem.synchronous}")
                self._flusher.execute(f"PRAGMA synchronous = {self._filesystem.synchronous}")
                self._background.wake()

    def _empty_log(self) -> None:
        with self._writing, mapped_errors("checkpoint"):
            self._log.empty(self._writer)

    def _with_reserve(self, work: Callable[[], _T], prepare: Callable[[], object] = lambda: None) -> _T:
        """Call `work`, which must succeed even on a full disk, and return its result.

        If the disk is full, free the reserve and retry once.

        Args:
            work: Function to call.
            prepare: Function called before the retry.
        """
        try:
            return work()
        except (StoreError, sqlite3.Error) as error:
            if not self._space.is_short(error):
                raise
        self._space.give()
        prepare()
        return work()
