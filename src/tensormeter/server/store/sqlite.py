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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tensormeter.errors import StoreError
from tensormeter.otlp.batch import STEP_METRIC, Attribute, Batch, Event
from tensormeter.otlp.decode import decode_metrics
from tensormeter.server.store import (
    MAX_SERIES_POINTS,
    MetricSummary,
    ProjectSummary,
    Receipt,
    RunSummary,
    Series,
    StoreUnavailableError,
    XAxis,
    journal,
    listing,
)
from tensormeter.server.store.arrivals import Rejections, arrivals_of
from tensormeter.server.store.background import Background
from tensormeter.server.store.catalog import MAX_SERIES_PER_RUN, Catalog, find_run
from tensormeter.server.store.events import insert_event
from tensormeter.server.store.folding import apply_folds, plan_folds
from tensormeter.server.store.heads import Heads, Layer
from tensormeter.server.store.lock import FolderLock
from tensormeter.server.store.points import Points
from tensormeter.server.store.schema import connect, prepare
from tensormeter.server.store.selection import read_series
from tensormeter.server.store.source import MAX_NAME, identify
from tensormeter.server.store.transaction import mapped_errors, reading, writing

__all__ = ["READERS", "SqliteStore"]

READERS: Final = 4
"""Reads that run at once. A further one waits, so a server should not start more."""

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
        max_series_points: int = MAX_SERIES_POINTS,
    ) -> None:
        """Open the store in `folder`, creating what is not there, and replay its journal.

        Args:
            folder: One server at a time uses it.
            fold_points: Points in memory that make the background thread fold at once (17 bytes each).
            fold_interval: Seconds between two folds of fewer points.
            max_pending_points: Points in memory above which requests are put off.
            max_series_points: Points that one call of `series` returns, at most.

        Raises:
            StoreError: The folder is in use or cannot be written to, or the file is damaged or of a newer version.
        """
        self._fold_points = fold_points
        self._max_pending_points = max_pending_points
        self._max_series_points = max_series_points
        self._folding = threading.Lock()
        self._writing = threading.Lock()
        self._heads = Heads()
        self._problem: str | None = None
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
        self._background = Background("tensormeter-fold", self._fold_in_background, fold_interval)

    def append_metrics(self, batches: Sequence[Batch], *, payload: bytes, batch_id: str | None = None) -> Receipt:
        """See `Store`."""
        received = time.time_ns()
        arrivals, rejections = arrivals_of(batches)
        content = journal.digest("metrics", payload)
        compressed = journal.compress(payload)
        with self._writing:
            self._check_open()
            self._check_pending(sum(len(arrival.points) for arrival in arrivals))
            heads: list[tuple[int, int, Points]] = []
            with self._transaction():
                if batch_id is not None:
                    known = journal.find_batch(self._writer, batch_id, content)
                    if known is not None:
                        return known
                first: dict[object, int] = {}
                for arrival in arrivals:
                    earliest = int(arrival.points.times.min())
                    first[arrival.source] = min(first.get(arrival.source, earliest), earliest)
                rows = {}
                for source in {arrival.source: None for arrival in arrivals}:
                    rows[source] = self._catalog.process(source, first[source], received)
                for arrival in arrivals:
                    run, process = rows[arrival.source]
                    series = self._catalog.series(run, process, arrival)
                    if series is None:
                        rejections[f"run has more than {MAX_SERIES_PER_RUN} series"] += len(arrival.points)
                    else:
                        heads.append((run, series, arrival.points))
                receipt = Receipt(rejections.total(), rejections.describe("data point"))
                if batch_id is not None:
                    journal.record_batch(self._writer, batch_id, content, receipt)
                seq = journal.append(self._writer, compressed) if heads else 0
            if heads:
                self._heads.append(seq, heads)
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
                run, process = self._catalog.process(source, moment, received)
                insert_event(self._writer, run, process, event, moment)

    def projects(self) -> list[ProjectSummary]:
        """See `Store`."""
        with self._reader() as connection, reading(connection):
            return listing.list_projects(connection)

    def runs(self, project: str | None, *, limit: int, offset: int) -> tuple[list[RunSummary], int]:
        """See `Store`."""
        with self._reader() as connection:
            layers = self._heads.layers()
            with reading(connection):
                layers = _unfolded(connection, layers)
                page = listing.list_runs(connection, layers, project, limit, offset)
                return page, listing.count_runs(connection, project)

    def run(self, run_id: str, project: str | None = None) -> RunSummary:
        """See `Store`."""
        with self._snapshot(run_id, project) as (connection, layers, run):
            return listing.load_run(connection, layers, run)

    def metrics(self, run_id: str, project: str | None = None) -> list[MetricSummary]:
        """See `Store`."""
        with self._snapshot(run_id, project) as (connection, layers, run):
            return listing.list_metrics(connection, layers, run)

    def series(
        self,
        run_id: str,
        metric: str,
        *,
        project: str | None = None,
        process: str | None = None,
        x: XAxis = "step",
        start: int | None = None,
        stop: int | None = None,
    ) -> list[Series]:
        """See `Store`."""
        with self._snapshot(run_id, project, metrics=(metric, STEP_METRIC)) as (connection, layers, run):
            return read_series(
                connection,
                layers,
                run,
                metric,
                process=process,
                x=x,
                start=start,
                stop=stop,
                limit=self._max_series_points,
            )

    def problem(self) -> str | None:
        """See `Store`."""
        return self._problem

    def fold(self) -> None:
        """Fold now what is in memory. Runs by itself on the background thread; tests call it to get there sooner.

        Raises:
            StoreError: It could not be written; it stays in memory and in the journal.
        """
        with self._folding:
            with self._writing:  # between a commit and its append, what is in memory is less than the journal
                layer = self._heads.freeze()
            if layer is None:
                return
            with reading(self._folder):
                folds = plan_folds(self._folder, layer)
            with self._writing, self._transaction():
                apply_folds(self._writer, folds, layer.upto)
            self._heads.discard()
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
        for seq, payload in journal.replay(self._folder):
            arrivals, _ = arrivals_of(decode_metrics(payload))
            known = self._catalog.known(arrivals)
            self._heads.append(seq, [(run, series, arrival.points) for run, series, arrival in known])

    def _fold_in_background(self) -> None:
        try:
            self.fold()
        except StoreError as error:
            if self._problem is None:
                _log.warning("tensormeter: %s; points wait in memory and in the journal", error)
            self._problem = str(error)
        else:
            self._problem = None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with writing(self._writer):
                yield
        except BaseException:
            self._catalog.forget()
            raise

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        self._check_open()
        connection = self._readers.get()
        try:
            yield connection
        finally:
            self._readers.put(connection)

    @contextmanager
    def _snapshot(
        self,
        run_id: str,
        project: str | None,
        metrics: Sequence[str] | None = None,
    ) -> Iterator[tuple[sqlite3.Connection, list[Layer], int]]:
        """A run, and one consistent view of it in memory and in the file (only of `metrics`, if given)."""
        with self._reader() as connection:
            with reading(connection):
                run = find_run(connection, run_id, project)
                series = None if metrics is None else _series_named(connection, run, metrics)
            layers = self._heads.layers(run, series)
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


def _unfolded(connection: sqlite3.Connection, layers: Sequence[Layer]) -> list[Layer]:
    return [layer for layer in layers if not journal.is_folded(connection, layer.upto)]


def _series_named(connection: sqlite3.Connection, run: int, metrics: Sequence[str]) -> set[int]:
    rows = connection.execute(
        "SELECT series.id FROM process JOIN series ON series.process = process.id"
        f" WHERE run = ? AND metric IN ({', '.join('?' * len(metrics))})",
        (run, *metrics),
    )
    return {row[0] for row in rows}
