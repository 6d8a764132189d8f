"""Work of the SQLite store in the background: flushes, rollups, and the removal of old data."""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Final

from tensormeter.errors import StoreError
from tensormeter.server.store.models.errors import DamagedError, StoreUnavailableError, SuspectedDamageError
from tensormeter.server.store.sqlite.compaction import apply_flush, full_segments, plan_flush
from tensormeter.server.store.sqlite.integrity.damage import name_damage
from tensormeter.server.store.sqlite.points.rollups import SegmentKey, build_rollups, insert_rollups
from tensormeter.server.store.sqlite.retention import (
    Retention,
    deleted_runs,
    expired_runs,
    purge_some,
    remove_old_lines,
    remove_old_points,
)
from tensormeter.server.store.sqlite.transaction import mapped_errors, may_be_damage, reading
from tensormeter.server.store.sqlite.writer import SqliteWriter

__all__ = ["SqliteUpkeep"]

_ROLLUPS_AT_ONCE: Final = 16
"""Maximum number of segments whose rollups one transaction writes. Ingestion waits for the transaction."""

_CLOSING_SECONDS: Final = 4.0
"""Seconds after which a store that closes stops flushing. Replaying points takes a fraction of the time of flushing them."""

_RECOVERY: Final = "recovery"
"""Name of the mark that the store writes to check whether writing works again."""

_log = logging.getLogger(__name__)


class _StoppedError(StoreError):
    """The end of a flush because the store is closing."""


class SqliteUpkeep(SqliteWriter):
    """The work of `SqliteStore` in the background."""

    _flush_points: int
    _max_pending_points: int
    _retention: Retention
    _flushing: threading.Lock
    _missing_rollups: deque[SegmentKey]
    _problem: str | None
    _stop_at: float

    def flush(self) -> None:
        """Flush the memtable, remove deleted runs, and build rollups of full segments.

        Raises:
            StoreError: The flush failed. The points stay in memory and in the commit log.
        """
        with self._flushing:
            self._renew_flusher()
            with self._writing:  # between committing and appending, the memtable lacks points that are in the journal
                snapshot = self._memtable.freeze()
                with self._checking_damage(), mapped_errors("read"):
                    # Deleted runs receive no more points, so all of their points are in segments or in this flush.
                    deleted = deleted_runs(self._writer, self._damage.add)
            if snapshot is not None:
                with self._checking_damage(), reading(self._flusher):
                    planned = plan_flush(self._flusher, snapshot, self._yield_to_readers, self._note_damage)
                with self._writing, self._transaction():
                    apply_flush(self._writer, planned, snapshot.upto, self._check_closing)
                self._memtable.discard()
                self._missing_rollups.extend(full_segments(planned))
            self._remove(deleted)
            rollups_built = self._build_rollups()
            if snapshot is not None or deleted or rollups_built:
                self._checkpoint()

    def _begin_closing(self) -> None:
        self._stop_at = time.monotonic() + _CLOSING_SECONDS
        self._closed = True

    def _flush_last(self) -> None:
        """Flush the store when it closes, as far as the time allows."""
        try:
            self.flush()
        except (StoreUnavailableError, _StoppedError) as error:
            _log.warning("tensormeter: %s; the newest points stay in the commit log until the next start", error)
        except StoreError:
            _log.exception(
                "tensormeter: flushing the store failed; its newest points stay in the commit log until the next start"
            )

    def _work_in_background(self) -> None:
        try:
            self._with_reserve(self._expire, self._empty_log)
            self._with_reserve(self.flush, self._empty_log)
            if self._space.tight:
                self._empty_log()
            if self._disk.failing:
                self.mark(_RECOVERY, time.time_ns())
        except _StoppedError:
            return
        except StoreError as error:
            self._leave_out_syncs(error)
            if self._problem is None:
                _log.warning("tensormeter: %s; points stay in memory and in the commit log", error)
            self._problem = str(error)
            if isinstance(error, StoreUnavailableError):
                self._disk.failed(error)
        else:
            self._problem = None
        self._space.keep()

    def _expire(self) -> None:
        """Delete data beyond the retention limits."""
        before = self._retention.before(time.time_ns())
        if before is None and self._retention.max_bytes is None:
            return
        with self._writing, self._transaction():
            for run in expired_runs(self._writer, before, self._retention.max_bytes, self._damage.add):
                names = self._writer.execute("SELECT run_id, project FROM run WHERE id = ?", (run,)).fetchone()
                _log.warning("tensormeter: retention is deleting run %r (project %r)", *names)
                self._catalog.delete(run, time.time_ns(), self._memtable.last())
        if before is not None:
            more = True
            while more:
                self._check_closing()
                with self._writing, self._transaction():
                    more = remove_old_points(self._writer, before, self._damage.add) or remove_old_lines(
                        self._writer, before, self._damage.add
                    )

    def _build_rollups(self) -> bool:
        """Build missing rollups, and return whether any were missing. If the store closes, the next start continues."""
        were_missing = bool(self._missing_rollups)
        while self._missing_rollups and not self._closed:
            self._yield_to_readers()
            keys = [*islice(self._missing_rollups, _ROLLUPS_AT_ONCE)]
            try:
                with self._checking_damage(), reading(self._flusher):
                    rollups = build_rollups(self._flusher, keys)
            except StoreUnavailableError:
                raise
            except StoreError as error:  # a segment is damaged; read the others as points
                self._note_damage(error)
                rollups = []
            with self._writing, self._transaction():
                insert_rollups(self._writer, rollups)
            for _ in keys:
                self._missing_rollups.popleft()
            if self._memtable.pending() >= self._flush_points:
                self._background.wake()
                break
        return were_missing

    def _note_damage(self, error: StoreError) -> None:
        """Record damage found by a flush.

        Raises:
            StoreUnavailableError: The cause may be a failing disk instead of damage.
        """
        if self._is_doubtful():
            raise StoreUnavailableError(
                f"cannot read the store: {error}; the disk reported an error, and the read will be retried"
            )
        if may_be_damage(error.__cause__) and self._verifier.confirmed is None:
            raise SuspectedDamageError(
                f"cannot read the store: {error}; the server is checking whether the file is damaged"
            )
        self._damage.add(name_damage(self._flusher, error) if isinstance(error, DamagedError) else error)

    def _yield_to_readers(self) -> None:
        """Pause while reads run, unless too many points are pending. Raises _StoppedError like `_check_closing`."""
        self._check_closing()
        if not self._closed and self._memtable.pending() < self._max_pending_points // 2:
            self._read_priority.yield_to_readers()

    def _check_closing(self) -> None:
        """Stop the caller's work, which the next start continues, if the store should be closed by now.

        Raises:
            _StoppedError: The store should be closed by now.
        """
        if self._closed and time.monotonic() > self._stop_at:
            raise _StoppedError(f"flushing takes more than {_CLOSING_SECONDS:g} s")

    def _remove(self, deleted: Sequence[int]) -> None:
        for run in deleted:
            more = True
            while more:
                self._check_closing()
                with self._writing, self._transaction():
                    more = purge_some(self._writer, run)

    def _checkpoint(self) -> None:
        with mapped_errors("checkpoint"):
            if not self._space.tight:
                self._flusher.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        if self._space.tight:
            self._empty_log()
