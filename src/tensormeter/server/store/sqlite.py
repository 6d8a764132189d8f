"""The store in one SQLite file: journal, catalog and chunks.

The way of a point: a request is written to the journal in one transaction together with its batch id and any new rows
of the catalog, then its points go into heads in memory, then it is answered. A background thread folds heads into
compressed chunks, in one transaction that also drops the journal rows they came from. Opening replays the journal.

Locks, in the order in which they may be taken: folding, writing, the heads' own.
Nothing is decoded, compressed or read from a chunk while the lock on writing is held.
"""

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tensormeter.errors import StoreError
from tensormeter.otlp.batch import Attribute, Batch, Event
from tensormeter.otlp.decode import decode_metrics
from tensormeter.server.store import (
    MAX_READ_POINTS,
    STALL_AFTER,
    Change,
    Changes,
    MetricSummary,
    NotFoundError,
    ProcessSummary,
    ProjectSummary,
    Reading,
    Receipt,
    RunChanges,
    RunRef,
    RunSummary,
    RunTable,
    StoredEvent,
    StoreUnavailableError,
    journal,
    listing,
    runs,
)
from tensormeter.server.store.annotations import update_run
from tensormeter.server.store.arrivals import Arrival, Rejections, arrivals_of
from tensormeter.server.store.background import Background
from tensormeter.server.store.catalog import DELETED, MAX_SERIES_PER_RUN, Catalog, find_run
from tensormeter.server.store.cursor import Cursor
from tensormeter.server.store.events import insert_event, last_event, read_alerts, read_events, read_media
from tensormeter.server.store.folding import apply_folds, plan_folds
from tensormeter.server.store.heads import Heads, Layer, Placed
from tensormeter.server.store.lifecycle import RUN_START
from tensormeter.server.store.lock import FolderLock
from tensormeter.server.store.removal import Retention, expired_runs, purge_some, remove_old_points
from tensormeter.server.store.schema import connect, prepare
from tensormeter.server.store.selection import find_series, new_series, read_series
from tensormeter.server.store.source import MAX_NAME, Source, identify
from tensormeter.server.store.transaction import mapped_errors, reading, writing

__all__ = ["READERS", "SqliteStore"]

READERS: Final = 4
"""Reads that run at once. A further one waits, so a server should not start more."""

_LATELY: Final = 24 * 3600 * 10**9

_log = logging.getLogger(__name__)


class SqliteStore:
    """A `Store` in a folder on a local disk. See the interface for threads and errors."""

    def __init__(
        self,
        folder: Path,
        *,
        fold_points: int = 1_000_000,
        fold_interval: float = 30.0,
        max_pending_points: int = 8_000_000,
        stall_after: float = STALL_AFTER,
        retention: Retention | None = None,
    ) -> None:
        """Open the store in `folder`, creating what is not there, and replay its journal.

        Args:
            folder: One server at a time uses it.
            fold_points: Points in memory that make the background thread fold at once (17 bytes each).
            fold_interval: Seconds between two folds of fewer points.
            max_pending_points: Points in memory above which requests are put off.
            stall_after: Seconds without any sign of life after which a run that has not ended counts as stalled.
            retention: What is removed by itself; by default nothing.

        Raises:
            StoreError: The folder is in use or cannot be written to, or the file is damaged or of a newer version.
        """
        self._fold_points = fold_points
        self._max_pending_points = max_pending_points
        self._stall_after = stall_after
        self._retention = retention or Retention()
        self._folding = threading.Lock()
        self._writing = threading.Lock()
        self._heads = Heads()
        self._problem: str | None = None
        self._damage: str | None = None
        self._closed = False
        self._lock = FolderLock(folder)
        try:
            file = folder / "tensormeter.db"
            prepare(file)
            self._writer = connect(file)
            # The folding thread checkpoints; this is for when it falls behind (16,384 pages of 4 KiB).
            self._writer.execute("PRAGMA wal_autocheckpoint = 16384")
            self._folder = connect(file)
            self._catalog = Catalog(self._writer)
            self._readers: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
            for _ in range(READERS):
                self._readers.put(connect(file, read_only=True))
            self._replay()
        except sqlite3.Error as error:
            self._lock.release()
            raise StoreError(f"cannot open the store in {folder}: {error}") from error
        except BaseException:
            self._lock.release()
            raise
        self._background = Background("tensormeter-fold", self._work_in_background, fold_interval)

    def append_metrics(self, batches: Sequence[Batch], *, payload: bytes, batch_id: str | None = None) -> Receipt:
        """See `Store`."""
        received = time.time_ns()
        arrivals, rejections = arrivals_of(batches)
        content = journal.digest("metrics", payload)
        compressed = journal.compress(payload)
        with self._writing:
            self._check_open()
            self._check_pending(sum(len(arrival.points) for arrival in arrivals))
            with self._transaction():
                if batch_id is not None:
                    known = journal.find_batch(self._writer, batch_id, content)
                    if known is not None:
                        return known
                placed = self._place(arrivals, received, rejections)
                receipt = Receipt(rejections.total(), rejections.describe("data point"))
                if batch_id is not None:
                    journal.record_batch(self._writer, batch_id, content, receipt)
                seq = journal.append(self._writer, compressed) if placed else 0
            if placed:
                self._heads.append(seq, placed)
        if self._heads.pending() >= self._fold_points:
            self._background.wake()
        return receipt

    def append_events(
        self,
        resources: Sequence[tuple[Mapping[str, Attribute], Sequence[Event]]],
        *,
        payload: bytes,
        batch_id: str | None = None,
    ) -> Receipt:
        """See `Store`."""
        received = time.time_ns()
        content = journal.digest("logs", payload)
        rejections = Rejections()
        with self._writing:
            self._check_open()
            with self._transaction():
                if batch_id is not None:
                    known = journal.find_batch(self._writer, batch_id, content)
                    if known is not None:
                        return known
                for attributes, events in resources:
                    if events:
                        self._append_events(attributes, events, received, rejections)
                receipt = Receipt(rejections.total(), rejections.describe("log record"))
                if batch_id is not None:
                    journal.record_batch(self._writer, batch_id, content, receipt)
        return receipt

    def _place(self, arrivals: Sequence[Arrival], received: int, rejections: Rejections) -> list[Placed]:
        """Find or create the rows that arrivals belong to; inside a transaction."""
        spans: dict[Source, tuple[int, int]] = {}
        for arrival in arrivals:
            times = arrival.points.times
            first, last = int(times.min()), int(times.max())
            known = spans.get(arrival.source)
            spans[arrival.source] = (first, last) if known is None else (min(known[0], first), max(known[1], last))
        rows = {source: self._catalog.process(source, span, received) for source, span in spans.items()}
        placed: list[Placed] = []
        for arrival in arrivals:
            row = rows[arrival.source]
            if row is None:
                rejections[DELETED] += len(arrival.points)
                continue
            series = self._catalog.series(*row, arrival)
            if series is None:
                rejections[f"run has more than {MAX_SERIES_PER_RUN} series"] += len(arrival.points)
            else:
                placed.append(Placed(*row, series, arrival.metric, arrival.points))
        return placed

    def _append_events(
        self,
        attributes: Mapping[str, Attribute],
        events: Sequence[Event],
        received: int,
        rejections: Rejections,
    ) -> None:
        source = identify(attributes)
        if isinstance(source, str):
            rejections[source] += len(events)
            return
        for event in events:
            moment = event.time or received  # OTLP: both times of a log record may be unknown
            if moment >= 1 << 63:
                rejections["time is above 2^63 - 1 ns"] += 1
            elif len(event.name) > MAX_NAME:
                rejections[f"event name is longer than {MAX_NAME} characters"] += 1
            else:
                starts = event.name == RUN_START
                rows = self._catalog.process(source, (moment, moment), received, starts=starts, points=False)
                reason = DELETED if rows is None else insert_event(self._writer, *rows, event, moment)
                if reason is not None:
                    rejections[reason] += 1

    def projects(self) -> list[ProjectSummary]:
        """See `Store`."""
        with self._reader() as connection, reading(connection):
            return listing.list_projects(connection)

    def table(self, project: str | None, fields: Sequence[str]) -> RunTable:
        """See `Store`."""
        with self._reader() as connection:
            layers = self._heads.layers(None, metrics=runs.metrics_needed(fields))
            with reading(connection):
                return runs.load_table(connection, _unfolded(connection, layers), project, fields, self._stall_after)

    def runs(self, runs_: Sequence[int], metrics: Sequence[str] | None = None) -> list[RunSummary]:
        """See `Store`."""
        with self._reader() as connection:
            layers = self._heads.layers(set(runs_))
            with reading(connection):
                layers = _unfolded(connection, layers)
                return runs.load_runs(connection, layers, runs_, metrics, self._stall_after)

    def run(self, ref: RunRef) -> RunSummary:
        """See `Store`."""
        with self._snapshot(ref) as (connection, layers, run):
            found = runs.load_runs(connection, layers, [run], None, self._stall_after)
        if not found:  # deleted in between
            raise NotFoundError(f"there is no run {ref.run_id!r}; list the runs to see their ids")
        return found[0]

    def processes(self, ref: RunRef) -> list[ProcessSummary]:
        """See `Store`."""
        with self._reader() as connection, reading(connection):
            return listing.list_processes(connection, find_run(connection, *_names(ref)))

    def losses(self, ref: RunRef) -> Mapping[str, int]:
        """See `Store`."""
        with self._reader() as connection, reading(connection):
            return listing.list_losses(connection, find_run(connection, *_names(ref)))

    def update(self, ref: RunRef, changes: RunChanges) -> None:
        """See `Store`."""
        with self._change(ref) as run:
            update_run(self._writer, run, changes)

    def delete(self, ref: RunRef) -> None:
        """See `Store`."""
        with self._change(ref) as run:
            self._catalog.delete(run, time.time_ns(), self._heads.last())
        self._background.wake()

    def metrics(self, ref: RunRef) -> list[MetricSummary]:
        """See `Store`."""
        with self._snapshot(ref) as (connection, layers, run):
            return listing.list_metrics(connection, layers, run)

    def read(
        self,
        ref: RunRef,
        metrics: Sequence[str],
        *,
        process: str | None = None,
        numeric: bool = True,
        start: int | None = None,
        stop: int | None = None,
        after: str | None = None,
        limit: int = MAX_READ_POINTS,
    ) -> Reading:
        """See `Store`."""
        with self._reader() as connection:
            seq = self._heads.last()  # before anything is read: what comes meanwhile is then seen twice, and not never
            with reading(connection):
                run = find_run(connection, *_names(ref))
                started = int(
                    connection.execute("SELECT ifnull(started, created) FROM run WHERE id = ?", (run,)).fetchone()[0]
                )
                rows = find_series(connection, run, metrics, process, numeric=numeric)
                cursor = str(Cursor(seq, last_event(connection)))
            wanted = {row[0] for row in rows}
            if after is not None:
                parts = self._heads.since(run, Cursor.parse(after).seq, wanted)
                if parts is not None:
                    return Reading(new_series(rows, parts, numeric=numeric), cursor, complete=False, started=started)
            layers = self._heads.layers({run}, wanted)
            with reading(connection):
                layers = _unfolded(connection, layers)
                found = read_series(connection, layers, rows, numeric=numeric, start=start, stop=stop, limit=limit)
            return Reading(found, cursor, complete=True, started=started)

    def events(
        self,
        ref: RunRef,
        *,
        name: str | None = None,
        key: str | None = None,
        start: int | None = None,
        stop: int | None = None,
        limit: int = 1000,
    ) -> list[StoredEvent]:
        """See `Store`."""
        with self._reader() as connection, reading(connection):
            run = find_run(connection, *_names(ref))
            return read_events(connection, run, name=name, key=key, start=start, stop=stop, limit=limit)

    def media(self, ref: RunRef, digest: str) -> tuple[str, bytes]:
        """See `Store`."""
        with self._reader() as connection, reading(connection):
            found = read_media(connection, find_run(connection, *_names(ref)), digest)
        if found is None:
            raise NotFoundError(f"run {ref.run_id!r} has no media {digest[:80]!r}; its events name what it has")
        return found

    def changes(self, after: str | None, refs: Sequence[RunRef] | None = None) -> Changes:
        """See `Store`."""
        with self._reader() as connection:
            seq = self._heads.last()
            with reading(connection):
                cursor = str(Cursor(seq, last_event(connection)))
                if after is None:
                    return Changes(cursor, [])
                wanted = None if refs is None else _existing(connection, refs)
                since = Cursor.parse(after)
                grown = self._heads.grown(since.seq, wanted)
                rows = connection.execute("SELECT DISTINCT run FROM event WHERE id > ?", (since.event,))
                eventful = {row[0] for row in rows}
                if wanted is None:
                    wanted = eventful | (grown.keys() if grown is not None else _recent(connection))
                states = runs.load_states(connection, wanted, self._stall_after)
                names = _names_of(connection, states)
            changes = [
                Change(names[run], sorted((grown or {}).get(run, ())), states[run], grown is None or run in eventful)
                for run in sorted(states)
            ]
            return Changes(cursor, changes)

    def raise_alert(self, run: RunRef, event: Event) -> None:
        """See `Store`."""
        with self._change(run) as row:
            process = self._writer.execute("SELECT min(id) FROM process WHERE run = ?", (row,)).fetchone()[0]
            insert_event(self._writer, row, process, event, event.time)

    def mark_stalled(self, run: RunRef, *, stalled: bool) -> None:
        """See `Store`."""
        with self._change(run) as row:
            self._writer.execute("UPDATE run SET stalled = ? WHERE id = ?", (stalled, row))

    def alerts(self, after: int, limit: int) -> list[tuple[RunRef, StoredEvent]]:
        """See `Store`."""
        with self._reader() as connection, reading(connection):
            return read_alerts(connection, after, limit)

    def mark(self, name: str, value: int | None = None) -> int:
        """See `Store`."""
        if value is not None:
            with self._writing:
                self._check_open()
                with writing(self._writer):
                    self._writer.execute("INSERT OR REPLACE INTO mark (name, value) VALUES (?, ?)", (name, value))
            return value
        with self._reader() as connection, reading(connection):
            row = connection.execute("SELECT value FROM mark WHERE name = ?", (name,)).fetchone()
            return 0 if row is None else int(row[0])

    def problem(self) -> str | None:
        """See `Store`. Damage that a read has come upon is said until the store is opened anew."""
        return self._damage or self._problem

    def fold(self) -> None:
        """Fold now what is in memory, and remove what is to be removed.

        Runs by itself on the background thread; tests call it to get there sooner.

        Raises:
            StoreError: It could not be written; it stays in memory and in the journal.
        """
        with self._folding:
            with self._writing:  # between a commit and its append, what is in memory is less than the journal
                layer = self._heads.freeze()
                with mapped_errors("read"):
                    # Nothing of theirs will come any more, so what this fold does not take in is in chunks already.
                    deleted = [row[0] for row in self._writer.execute("SELECT id FROM run WHERE deleted")]
            if layer is not None:
                with reading(self._folder):
                    folds = plan_folds(self._folder, layer)
                with self._writing, self._transaction():
                    apply_folds(self._writer, folds, layer.upto)
                self._heads.discard()
            self._remove(deleted)
            if layer is not None or deleted:
                with mapped_errors("checkpoint"):
                    self._folder.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self) -> None:
        """See `Store`. What cannot be folded any more stays in the journal for the next one who opens the folder."""
        with self._writing:
            if self._closed:
                return
            self._closed = True
        self._background.stop()
        try:
            self.fold()
        except StoreError:
            _log.exception("tensormeter: the store keeps its newest points in its journal")
        for _ in range(READERS):
            self._readers.get().close()  # waits for reads under way
        self._folder.close()
        self._writer.close()
        self._lock.release()

    def _replay(self) -> None:
        self._heads.begin(journal.folded(self._folder))
        for seq, payload in journal.replay(self._folder):
            arrivals, _ = arrivals_of(decode_metrics(payload))
            self._heads.append(seq, self._catalog.place(seq, arrivals))

    def _work_in_background(self) -> None:
        try:
            self._expire()
            self.fold()
        except StoreError as error:
            if self._problem is None:
                _log.warning("tensormeter: %s; points wait in memory and in the journal", error)
            self._problem = str(error)
        else:
            self._problem = None

    def _expire(self) -> None:
        """Delete what retention does not allow any more."""
        before = self._retention.before(time.time_ns())
        if before is None and self._retention.max_bytes is None:
            return
        with self._writing, self._transaction():
            for run in expired_runs(self._writer, before, self._retention.max_bytes):
                _log.warning("tensormeter: retention deletes run %d", run)
                self._catalog.delete(run, time.time_ns(), self._heads.last())
        if before is not None:
            more = True
            while more:
                with self._writing, self._transaction():
                    more = remove_old_points(self._writer, before)

    def _remove(self, deleted: Sequence[int]) -> None:
        for run in deleted:
            more = True
            while more:
                with self._writing, self._transaction():
                    more = purge_some(self._writer, run)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with writing(self._writer):
                yield
        except BaseException:
            self._catalog.forget()
            raise

    @contextmanager
    def _change(self, ref: RunRef) -> Iterator[int]:
        with self._writing:
            self._check_open()
            with self._transaction():
                yield find_run(self._writer, *_names(ref))

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        self._check_open()
        connection = self._readers.get()
        try:
            yield connection
        except StoreError as error:
            if type(error) is StoreError:  # damage, not a wish that cannot be fulfilled
                self._damage = str(error)
            raise
        finally:
            self._readers.put(connection)

    @contextmanager
    def _snapshot(self, ref: RunRef) -> Iterator[tuple[sqlite3.Connection, list[Layer], int]]:
        """A run, and one consistent view of it in memory and in the file."""
        with self._reader() as connection:
            with reading(connection):
                run = find_run(connection, *_names(ref))
            layers = self._heads.layers({run})
            with reading(connection):
                yield connection, _unfolded(connection, layers), run

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailableError("the store is closed")

    def _check_pending(self, points: int) -> None:
        pending = self._heads.pending()
        if pending and pending + points > self._max_pending_points:
            self._background.wake()
            raise StoreUnavailableError(f"{pending} points wait to be written to disk; send this request again later")


def _names(ref: RunRef) -> tuple[str, str | None]:
    return ref.run_id, ref.project


def _unfolded(connection: sqlite3.Connection, layers: Sequence[Layer]) -> list[Layer]:
    return [layer for layer in layers if not journal.is_folded(connection, layer.upto)]


def _existing(connection: sqlite3.Connection, refs: Sequence[RunRef]) -> set[int]:
    found: set[int] = set()
    for ref in refs:
        rows = connection.execute(
            "SELECT id FROM run WHERE run_id = ? AND project = ifnull(?, project) AND NOT deleted", _names(ref)
        )
        found.update(row[0] for row in rows)
    return found


def _recent(connection: sqlite3.Connection) -> set[int]:
    rows = connection.execute("SELECT id FROM run WHERE updated > ? AND NOT deleted", (time.time_ns() - _LATELY,))
    return {row[0] for row in rows}


def _names_of(connection: sqlite3.Connection, rows: Collection[int]) -> dict[int, RunRef]:
    found = connection.execute(f"SELECT id, run_id, project FROM run WHERE id IN ({', '.join(map(str, rows))})")
    return {row[0]: RunRef(row[1], row[2]) for row in found}
