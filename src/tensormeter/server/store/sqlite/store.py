"""The SQLite store: a commit log, a catalog and segments in one file.

A single transaction writes a request with points to the commit log, together with the batch ID and new catalog rows.
The request's points are then added to the memtable, and the server responds. A background thread flushes the memtable
to compressed segments, and deletes the flushed points from the commit log in the same transaction. Opening the store
replays the log. Events are written directly to their table.

Locks must be taken in this order: the flush lock, the write lock, the memtable's lock. Segments are not read, decoded
or compressed while the write lock is held.
"""

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tensormeter.disk.boot import written_before_boot
from tensormeter.errors import StoreError
from tensormeter.otlp.batch import Attribute, Batch, Event
from tensormeter.otlp.check import Check, no_check
from tensormeter.server.store.background import Background
from tensormeter.server.store.models.durability import ServerDurability
from tensormeter.server.store.models.errors import StoreFullError, StoreUnavailableError
from tensormeter.server.store.models.runs import ChangedRuns, Receipt, RunChanges, RunRef
from tensormeter.server.store.protocol import STALL_AFTER
from tensormeter.server.store.rules.batch_digest import digest
from tensormeter.server.store.rules.gaps import gaps_of
from tensormeter.server.store.rules.ingest_blocks import blocks_of
from tensormeter.server.store.rules.ingest_lines import line_arrivals
from tensormeter.server.store.rules.ingest_series import Rejections, arrivals_of
from tensormeter.server.store.sqlite.changed_runs import ChangeTracker
from tensormeter.server.store.sqlite.disk.checkpoint import WriteAheadLog
from tensormeter.server.store.sqlite.disk.disk_state import DiskMonitor
from tensormeter.server.store.sqlite.disk.durability import LogSyncer
from tensormeter.server.store.sqlite.disk.filesystem_trial import FileSystem
from tensormeter.server.store.sqlite.disk.free_space import FreeSpace
from tensormeter.server.store.sqlite.folder_lock import FolderLock
from tensormeter.server.store.sqlite.insert import insert_events, insert_line_arrival, locate_arrivals
from tensormeter.server.store.sqlite.integrity.missing_file import missing_store
from tensormeter.server.store.sqlite.integrity.start_check import StartCheck
from tensormeter.server.store.sqlite.integrity.suspicion import unreadable
from tensormeter.server.store.sqlite.integrity.wal_check import keep_damaged_log, lost_transactions
from tensormeter.server.store.sqlite.points.gaps import insert_gaps
from tensormeter.server.store.sqlite.points.memtable import Memtable
from tensormeter.server.store.sqlite.points.rollups import SegmentKey, find_missing_rollups
from tensormeter.server.store.sqlite.private_folder import tighten_files
from tensormeter.server.store.sqlite.recovery import Recovery
from tensormeter.server.store.sqlite.retention import Retention
from tensormeter.server.store.sqlite.schema import prepare
from tensormeter.server.store.sqlite.tables import commit_log
from tensormeter.server.store.sqlite.tables.catalog import Catalog
from tensormeter.server.store.sqlite.tables.events import insert_event
from tensormeter.server.store.sqlite.tables.owners import OwnerCache
from tensormeter.server.store.sqlite.tables.runs import update_run
from tensormeter.server.store.sqlite.transaction import mapped_errors
from tensormeter.server.store.sqlite.upkeep import SqliteUpkeep

__all__ = ["SqliteStore"]

_log = logging.getLogger(__name__)


class SqliteStore(SqliteUpkeep):
    """A `Store` in a data folder. See `Store` for threads and errors."""

    takes_blocks = True

    def __init__(
        self,
        folder: Path,
        *,
        flush_points: int = 1_000_000,
        flush_interval: float = 30.0,
        max_pending_points: int = 8_000_000,
        stall_after: float = STALL_AFTER,
        retention: Retention | None = None,
        durability: ServerDurability = "group",
    ) -> None:
        """Open the store in `folder`, creating it if needed, and replay its commit log.

        Args:
            folder: Data folder. Only one server at a time can use it.
            flush_points: Number of points in memory, 17 bytes each, at which a flush starts immediately.
            flush_interval: Seconds after which a flush starts even if there are fewer than `flush_points` points.
            max_pending_points: Number of points in memory above which requests are temporarily refused.
            stall_after: Seconds without points or events after which an unfinished run counts as stalled.
            retention: Limits on the data to keep; None for no limits.
            durability: Whether the server responds before (`group`) or after (`always`) commits are synced.

        Raises:
            StoreError: The folder is in use or not writable, or the file is missing, damaged, or from a newer version.
        """
        self._flush_points = flush_points
        self._max_pending_points = max_pending_points
        self._retention = retention or Retention()
        self._flushing = threading.Lock()
        self._writing = threading.Lock()
        self._changes = ChangeTracker()
        self._problem: str | None = None
        self._stop_at = 0.0
        self._durability: ServerDurability = durability
        self._lock = FolderLock(folder)
        try:
            self._file = file = folder / "tensormeter.db"
            missing = missing_store(file)
            if missing is not None:
                raise StoreError(missing)
            tighten_files(folder)
            self._space = FreeSpace(file)
            self._log = WriteAheadLog(file, self._space)
            lost = lost_transactions(file)
            if lost is not None and written_before_boot(file.with_name(f"{file.name}-wal")):
                _log.warning(
                    "tensormeter: %s. The machine has restarted since, so data that was not synced is lost; agents resend it",
                    lost,
                )
                lost = None
            copy = None if lost is None else keep_damaged_log(file)  # SQLite will overwrite the log
            filesystem = self._with_reserve(lambda: FileSystem.examine(folder))
            self._filesystem = filesystem
            self._with_reserve(lambda: prepare(file, filesystem))
            self._writer = self._with_reserve(self._connect_writer)
            self._flusher = self._with_reserve(self._connect)
            self._stale = False
            self._catalog = Catalog(self._writer)
            self._owners = OwnerCache(self._connect_reader)
            super().__init__(file, filesystem, Memtable(self._owners.find), stall_after)
            if lost is not None:
                self._damage.add(
                    StoreError(lost if copy is None else f"{lost}; the damaged log is kept in {copy.name}")
                )
            with suppress(sqlite3.Error):  # before requests can use up the space
                self._with_reserve(lambda: self._log.empty(self._writer))
            recovery = Recovery(
                file, self._writer, self._connect_reader, self._catalog, self._memtable, self._damage, self._verifier
            )
            recovery.replay(self._flusher)
            self._missing_rollups: deque[SegmentKey] = deque(find_missing_rollups(self._flusher))
            self.syncer = LogSyncer(file, self._carry_over)
            self.syncer.start(durability, syncs=filesystem.syncs)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            self._abandon()
            raise StoreError(
                unreadable(file) or f"cannot open the store in {folder}: {error}{self._space.hint()}"
            ) from error
        except BaseException:
            self._abandon()
            raise
        self._space.keep()
        self._disk = DiskMonitor(folder, self._space)
        self._start_check = StartCheck(file, filesystem, self._damage, self._verifier.read)
        self._background = Background("tensormeter-flush", self._work_in_background, flush_interval)
        self._disk.watch(self._background.wake)
        if self._missing_rollups:
            self._background.wake()

    def append_metrics(
        self,
        batches: Sequence[Batch],
        *,
        payload: bytes,
        batch_id: str | None = None,
        check: Check = no_check,
    ) -> Receipt:
        """See `Store`."""
        received = time.time_ns()
        arrivals, rejections = arrivals_of(batches, check)
        blocks = blocks_of(batches, rejections, check)
        gaps = gaps_of(batches, check)
        del batches  # frees memory if the caller holds no reference either
        points = sum(len(arrival.points) for arrival in arrivals) + sum(len(arrival.block.times) for arrival in blocks)
        content_digest = digest("metrics", payload)
        compressed = commit_log.compress(payload)
        with self._made_durable(), self._writing:
            self._check_open()
            self._check_pending(points)
            self._check_room(len(compressed), points)
            with self._transaction():
                if (earlier := self._receipt_of(batch_id, content_digest)) is not None:
                    return earlier
                located, numbers = locate_arrivals(self._catalog, arrivals, received, rejections, check, blocks)
                receipt = Receipt(rejections.total(), rejections.describe("data point"))
                if batch_id is not None:
                    commit_log.record_batch(self._writer, batch_id, content_digest, receipt)
                seq = commit_log.append(self._writer, compressed) if located or numbers else 0
                if gaps:
                    insert_gaps(self._writer, gaps, seq or self._memtable.last() + 1, check)
                self._catalog.record_first_steps(arrivals, blocks, seq)
            if seq:
                self._memtable.append(seq, located, numbers)
                self._changes.publish_again()
        if self._memtable.pending() >= self._space.flush_points(self._flush_points):
            self._background.wake()
        return receipt

    def append_events(
        self,
        resources: Sequence[tuple[Mapping[str, Attribute], Sequence[Event]]],
        *,
        payload: bytes,
        batch_id: str | None = None,
        check: Check = no_check,
    ) -> Receipt:
        """See `Store`."""
        received = time.time_ns()
        content_digest = digest("logs", payload)
        rejections = Rejections()
        # Lines are many, so they are prepared without the lock, and stored in parts that let other requests in between. A retry
        # completes a request that was stored in part: lines that are stored already are skipped.
        for arrival in line_arrivals(resources, received, rejections, check):
            with self._writing:
                self._check_open()
                self._check_room(len(payload), 0)
                with self._transaction():
                    if (earlier := self._receipt_of(batch_id, content_digest)) is not None:
                        return earlier
                    insert_line_arrival(
                        self._writer, self._catalog, arrival, received, self._retention.logs, rejections
                    )
        with self._made_durable(), self._writing:
            self._check_open()
            self._check_room(len(payload), 0)
            with self._transaction():
                if (earlier := self._receipt_of(batch_id, content_digest)) is not None:
                    return earlier
                insert_events(self._writer, self._catalog, resources, received, rejections, check=check)
                receipt = Receipt(rejections.total(), rejections.describe("log record"))
                if batch_id is not None:
                    commit_log.record_batch(self._writer, batch_id, content_digest, receipt)
        return receipt

    def _receipt_of(self, batch_id: str | None, content_digest: bytes) -> Receipt | None:
        """Return the receipt of a request that was stored before; None if it was not."""
        return None if batch_id is None else commit_log.find_batch(self._writer, batch_id, content_digest)

    def update(self, ref: RunRef, changes: RunChanges) -> None:
        """See `Store`."""
        with self._change(ref) as run:
            update_run(self._writer, run, changes)

    def delete(self, ref: RunRef) -> None:
        """See `Store`."""

        def delete() -> None:
            with self._change(ref) as run:
                self._catalog.delete(run, time.time_ns(), self._memtable.last())

        self._with_reserve(delete, self._empty_log)
        self._background.wake()

    def raise_alert(self, run: RunRef, event: Event) -> None:
        """See `Store`."""
        with self._change(run) as row:
            process = self._writer.execute("SELECT min(id) FROM process WHERE run = ?", (row,)).fetchone()[0]
            insert_event(self._writer, row, process, event, event.time, changed=set())

    def mark_stalled(self, run: RunRef, *, stalled: bool) -> None:
        """See `Store`."""
        with self._change(run) as row:
            self._writer.execute("UPDATE run SET stalled = ? WHERE id = ?", (stalled, row))

    def changed(self, position: int | None) -> ChangedRuns:
        """See `Store`."""
        return self._changes.since(position)

    def pending_points(self) -> int:
        """Return the number of points that are in memory and in the commit log, but not yet in segments."""
        return self._memtable.pending()

    def problem(self) -> str | None:
        """See `Store`. Damage is reported until the store is reopened."""
        return (
            "; ".join(filter(None, (self._damage.text(), self._verifier.confirmed)))
            or self._disk.problem()
            or self._verifier.problem()
            or self._problem
            or self.syncer.problem()
        )

    def stalled(self) -> str | None:
        """See `Store`."""
        return self._disk.stalled()

    def close(self) -> None:
        """See `Store`. Points that cannot be flushed soon stay in the commit log, which the next start replays."""
        with self._writing:
            if self._closed:
                return
            self._begin_closing()
        self._start_check.stop()
        self._background.stop()
        self.syncer.close()
        self._flush_last()
        self._disk.stop()
        self._close_readers()
        self._owners.close()
        self._flusher.close()
        self._writer.close()
        self._verifier.close()
        self._lock.release()

    def _abandon(self) -> None:
        """Close the connections of a store that could not be opened, and release the folder."""
        for name in ("_writer", "_flusher"):
            if hasattr(self, name):
                getattr(self, name).close()
        if hasattr(self, "_readers"):
            while not self._readers.empty():
                self._readers.get().close()
        self._lock.release()

    def _check_pending(self, points: int) -> None:
        pending = self._memtable.pending()
        if pending and pending + points > self._max_pending_points:
            self._background.wake()
            raise StoreUnavailableError(f"{pending} points are waiting to be written to disk; retry the request later")

    def _check_room(self, size: int, points: int) -> None:
        """Refuse a request that would use up space that the store needs. The caller holds the write lock."""
        try:
            with mapped_errors("write to"):
                self._log.shorten(self._writer)
                self._space.admit(self._writer, size, self._memtable.pending() + points)
        except StoreFullError:
            self._background.wake()
            raise
