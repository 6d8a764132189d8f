"""The read methods of the SQLite store, which combine the memtable with a snapshot of the file."""

import fnmatch
import math
import queue
import sqlite3
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.otlp.check import Check, no_check
from tensormeter.otlp.number_blocks import hash_name
from tensormeter.server.store.models.errors import (
    DamagedError,
    NotFoundError,
    StoreUnavailableError,
    SuspectedDamageError,
)
from tensormeter.server.store.models.event_query import ALL_EVENTS, EventQuery
from tensormeter.server.store.models.field_cache import FieldCache
from tensormeter.server.store.models.log_lines import LogPage, LogQuery
from tensormeter.server.store.models.name_cache import NameCache
from tensormeter.server.store.models.names import FieldKind, NameTable
from tensormeter.server.store.models.point_range import PointRange
from tensormeter.server.store.models.points import Column
from tensormeter.server.store.models.runs import (
    MAX_CHANGED_METRICS,
    Change,
    Changes,
    EventPage,
    ProcessSummary,
    ProjectSummary,
    RunRef,
    RunSummary,
    RunTable,
    StoredEvent,
    Summary,
)
from tensormeter.server.store.models.series import MetricSummary, ProcessRollups, Reading, Selection, SeriesRollup
from tensormeter.server.store.sqlite.disk.filesystem_trial import FileSystem
from tensormeter.server.store.sqlite.integrity.damage import Damage, name_damage, skip_damaged
from tensormeter.server.store.sqlite.integrity.suspicion import DamageVerifier
from tensormeter.server.store.sqlite.points.bundle_snapshot import bundled
from tensormeter.server.store.sqlite.points.gaps import has_new_gaps, read_gaps
from tensormeter.server.store.sqlite.points.memtable import Memtable, MemtableSnapshot
from tensormeter.server.store.sqlite.points.process_scan import ProcessScan
from tensormeter.server.store.sqlite.points.rollups import read_rollups
from tensormeter.server.store.sqlite.points.series_reader import find_attempts, find_series, new_series, read_series
from tensormeter.server.store.sqlite.read_priority import ReadPriority
from tensormeter.server.store.sqlite.schema import connect
from tensormeter.server.store.sqlite.tables import commit_log, listing, runs
from tensormeter.server.store.sqlite.tables.catalog import find_run
from tensormeter.server.store.sqlite.tables.events import last_event, names_media, read_alerts, read_events, read_media
from tensormeter.server.store.sqlite.tables.listing import check_series
from tensormeter.server.store.sqlite.tables.log_lines import changed_logs, last_line, read_lines
from tensormeter.server.store.sqlite.tables.names import read_config_keys, read_names, read_summary_names
from tensormeter.server.store.sqlite.tables.run_table import load_table, metrics_needed
from tensormeter.server.store.sqlite.transaction import reading

__all__ = ["READERS", "SqliteQueries"]

READERS: Final = 4
"""Maximum number of concurrent reads. Further reads wait, so a server should not start more at once."""

_DOUBT: Final = 5.0
"""Seconds after a failed read during which a wrong checksum does not count as damage."""

_LATELY: Final = 24 * 3600 * 10**9

_UNKNOWN: Final = -1

_LONGEST: Final = 60
"""Maximum number of characters in a cursor."""

_FEW_NAMES: Final = 1000
"""Number of metrics up to which the names of single series are read, rather than all names of the run."""


@dataclass(frozen=True)
class _Cursor:
    """A reader's position: the last journal row, event and log line. Its string form is opaque to clients."""

    seq: int
    event: int
    line: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a cursor string. Any other string, such as another store's cursor, becomes an unknown position."""
        parts = text.split(".")
        if (
            len(parts) not in (2, 3)
            or len(text) > _LONGEST
            or not all(part.isascii() and part.isdecimal() for part in parts)
        ):
            return cls(_UNKNOWN, 0, 0)
        seq, event, line = (min(int(part), (1 << 63) - 1) for part in (*parts, "0")[:3])
        return cls(seq, event, line)

    def __str__(self) -> str:
        return f"{self.seq}.{self.event}.{self.line}"


class SqliteQueries:
    """The read methods of `SqliteStore`. See `Store` for threads and errors."""

    def __init__(self, file: Path, filesystem: FileSystem, memtable: Memtable, stall_after: float) -> None:
        """Open connections for reading.

        Args:
            file: Path of a database prepared by `prepare`.
            filesystem: Capabilities of the database's file system.
            memtable: Memtable with the points that no segment contains yet.
            stall_after: Seconds without points or events after which an unfinished run counts as stalled.
        """
        self._memtable = memtable
        self._stall_after = stall_after
        self._damage = Damage()
        self._name_cache = NameCache()
        self._field_cache = FieldCache()
        self._file = file
        self._filesystem = filesystem
        self._failed_at = -math.inf
        self._verifier = DamageVerifier(file, self._connect_reader)
        self._closed = False
        self._read_priority = ReadPriority()
        self._readers: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        for _ in range(READERS):
            self._readers.put(self._connect_reader())

    def projects(self) -> list[ProjectSummary]:
        """See `Store`."""
        with self._reader() as connection, reading(connection):
            return listing.list_projects(connection)

    @property
    def stall_after(self) -> float:
        """See `Store`."""
        return self._stall_after

    def table(
        self,
        project: str | None,
        fields: Sequence[str],
        check: Check = no_check,
        runs_: Collection[int] | None = None,
    ) -> RunTable:
        """See `Store`."""
        with self._reader() as connection:
            snapshots = self._memtable.snapshots(runs_, metrics=metrics_needed(fields))
            with reading(connection):
                waiting = _unflushed(connection, snapshots)
                return load_table(connection, waiting, project, fields, self._stall_after, check=check, runs=runs_)

    def runs(
        self, runs_: Sequence[int], metrics: Sequence[str] | None = None, damaged: list[str] | None = None
    ) -> list[RunSummary]:
        """See `Store`."""
        with self._reader() as connection, self._recording_damage(damaged):
            snapshots = self._memtable.snapshots(set(runs_), metrics=_with_steps(metrics))
            with reading(connection):
                snapshots = _unflushed(connection, snapshots)
                complete = [run for run in runs_ if self._check_complete(connection, run, damaged)]
                summaries = runs.load_runs(connection, snapshots, complete, metrics, self._stall_after, damaged=damaged)
        if damaged is not None and not self._damage.is_catalog_sound:  # already recorded
            damaged.append(f"{self._damage.structure or 'catalog rows are damaged'}; filters may miss runs")
        return summaries

    def run(self, ref: RunRef, metrics: Sequence[str] | None = None) -> RunSummary:
        """See `Store`."""
        with self._snapshot(ref, metrics) as (connection, snapshots, run):
            self._check_complete(connection, run)
            summaries = runs.load_runs(connection, snapshots, [run], metrics, self._stall_after)
        if not summaries:  # deleted in the meantime
            raise NotFoundError(f"there is no run {ref.run_id!r}; list the runs to see their IDs")
        return summaries[0]

    def summaries(self, ref: RunRef, metrics: Sequence[str]) -> Mapping[str, Summary]:
        """See `Store`."""
        with self._snapshot(ref, metrics) as (connection, snapshots, run):
            return runs.load_summaries(connection, snapshots, run, metrics)

    def processes(self, ref: RunRef) -> list[ProcessSummary]:
        """See `Store`."""
        with self._reader() as connection, reading(connection):
            run = find_run(connection, *_names(ref))
            self._check_complete(connection, run)
            return listing.list_processes(connection, run)

    def losses(self, ref: RunRef) -> Mapping[str, int]:
        """See `Store`."""
        with self._reader() as connection, reading(connection):
            run = find_run(connection, *_names(ref))
            self._check_complete(connection, run)
            return listing.list_losses(connection, run)

    def names(self, ref: RunRef) -> NameTable:
        """See `Store`."""
        with self._reader() as connection, reading(connection):
            return read_names(connection, find_run(connection, *_names(ref)), self._name_cache)

    def metrics(self, ref: RunRef, names: Sequence[str] | None = None) -> list[MetricSummary]:
        """See `Store`."""
        with self._reader() as connection:
            series: set[int] | None = None
            with reading(connection):
                run = find_run(connection, *_names(ref))
                if names is not None:
                    rows = listing.series_rows(connection, run, names)
                    series = {row[0] for row in rows} | listing.step_series(connection, run)
            snapshots = self._memtable.snapshots({run}, series)
            with reading(connection):
                snapshots = _unflushed(connection, snapshots)
                return listing.list_metrics(connection, snapshots, listing.series_rows(connection, run, names))

    def field_names(self, project: str | None, kind: FieldKind, check: Check = no_check) -> NameTable:
        """See `Store`."""

        def load() -> NameTable:
            unflushed = sorted({run for snapshot in self._memtable.snapshots() for run in snapshot.points})
            with self._reader() as connection, reading(connection):
                if kind == "config":
                    return read_config_keys(connection, project, check)
                return read_summary_names(connection, project, unflushed, self._name_cache, check)

        return self._field_cache.get(project, kind, load)

    def read(self, ref: RunRef, selection: Selection) -> Reading:
        """See `Store`."""
        with self._reader() as connection, self._recording_damage(selection.damaged):
            upto = self._upto(selection)  # points that arrive from now on are left to a later read
            with reading(connection):
                run = find_run(connection, *_names(ref))
                self._check_complete(connection, run, selection.damaged)
                started = int(
                    connection.execute("SELECT ifnull(started, created) FROM run WHERE id = ?", (run,)).fetchone()[0]
                )
                rows = find_series(connection, run, selection)
                attempts, changed = find_attempts(connection, run, [*selection.metrics, *selection.shadowing])
                cursor = selection.upto or str(_Cursor(upto, last_event(connection), last_line(connection)))
                series_ids = {row[0] for row in rows}
                since = None if selection.after is None else _Cursor.parse(selection.after).seq
                if since is not None and selection.gaps and has_new_gaps(connection, series_ids, since):
                    since = None
            if since is not None and changed <= since:
                parts = self._memtable.since(run, since, series_ids, upto)
                if parts is not None:
                    return Reading(new_series(rows, parts, selection), cursor, False, started, attempts)
            snapshots = self._memtable.snapshots({run}, series_ids, upto=upto)
            with reading(connection):
                snapshots = _unflushed(connection, snapshots)
                newer: Mapping[int, Sequence[Column]] | None = None
                if self._memtable.last() > upto and commit_log.flushed(connection) > upto:
                    # A flush has moved points after the cursor to segments.
                    newer = self._memtable.since(run, upto, series_ids)
                series = read_series(connection, snapshots, rows, selection, newer or {})
            return Reading(series, cursor, True, started, attempts)

    def read_rollups(
        self, ref: RunRef, selection: Selection, window: PointRange, blocks: int
    ) -> list[SeriesRollup] | None:
        """See `Store`."""
        upto = self._upto(selection)
        with (
            self._snapshot(ref, upto=upto) as (connection, snapshots, run),
            self._recording_damage(selection.damaged),
        ):
            self._check_complete(connection, run, selection.damaged)
            rows = find_series(connection, run, selection)
            gaps: Mapping[int, NDArray[np.int64]] = {}
            if selection.gaps:
                gaps = read_gaps(connection, (row[0] for row in rows), window.start, window.stop, selection.limit)
            return read_rollups(connection, snapshots, rows, window, selection, blocks=blocks, gaps=gaps)

    def scan(
        self, ref: RunRef, processes: Sequence[str], selection: Selection, window: PointRange, blocks: int
    ) -> Generator[ProcessRollups, None, None]:
        """See `Store`."""
        selection = replace(selection, process=None, damaged=None)
        with self._snapshot(ref, upto=self._upto(selection)) as (connection, snapshots, run):
            self._check_complete(connection, run)
            metrics = dict.fromkeys([*selection.metrics, STEP_METRIC])
            rows = find_series(connection, run, replace(selection, metrics=[*metrics]))
            scan = ProcessScan(connection, snapshots, rows, window, selection, blocks=blocks)
            yield from scan.read(processes)

    def events(self, ref: RunRef, query: EventQuery = ALL_EVENTS) -> EventPage:
        """See `Store`."""
        with self._reader() as connection, reading(connection):
            run = find_run(connection, *_names(ref))
            if self._damage.structure is not None:
                raise DamagedError(f"damaged: {self._damage.structure}; events may be missing", named=True)
            return read_events(connection, run, query)

    def logs(self, ref: RunRef, query: LogQuery, check: Check = no_check) -> LogPage:
        """See `Store`."""
        damaged: list[str] = []
        with self._reader() as connection, self._recording_damage(damaged), reading(connection):
            run = find_run(connection, *_names(ref))
            if self._damage.structure is not None:
                raise DamagedError(f"damaged: {self._damage.structure}; log lines may be missing", named=True)
            return read_lines(connection, run, query, damaged, check)

    def media(self, ref: RunRef, digest: str) -> tuple[str, bytes]:
        """See `Store`."""
        with self._reader() as connection, reading(connection):
            run = find_run(connection, *_names(ref))
            image = read_media(connection, run, digest)
            is_named = image is None and names_media(connection, run, digest)
        if is_named:  # do not record damage, because the reference may come from the sender
            raise DamagedError(
                f"damaged: media {digest} of run {ref.run_id!r} is missing, although an event refers to it; "
                "`tensormeter check` lists all damage; a backup of the data folder may contain it",
                named=True,
            )
        if image is None:
            raise NotFoundError(
                f"run {ref.run_id!r} has no media {digest[:80]!r}; the run's events contain the digests of its media"
            )
        return image

    def changes(self, after: str | None, refs: Sequence[RunRef] | None = None) -> Changes:
        """See `Store`."""
        with self._reader() as connection:
            seq = self._memtable.last()
            with reading(connection):
                cursor = str(_Cursor(seq, last_event(connection), last_line(connection)))
                if after is None:
                    return Changes(cursor, [])
                run_ids = None if refs is None else _existing_runs(connection, refs)
                since = _Cursor.parse(after)
                grown = self._memtable.grown(since.seq, MAX_CHANGED_METRICS, run_ids)
                rows = connection.execute("SELECT DISTINCT run FROM event WHERE id > ?", (since.event,))
                runs_with_events = {row[0] for row in rows}
                runs_with_lines = changed_logs(connection, since.line)
                if run_ids is None:
                    run_ids = (
                        runs_with_events
                        | runs_with_lines
                        | (grown.keys() if grown is not None else _recent(connection))
                    )
                states = runs.load_states(connection, run_ids, self._stall_after)
                names = _names_of(connection, states)
            changes = [
                Change(
                    names[run],
                    sorted((grown or {}).get(run) or ()),
                    states[run],
                    grown is None or run in runs_with_events,
                    many=grown is not None and run in grown and grown[run] is None,
                    logs=grown is None or run in runs_with_lines,
                )
                for run in sorted(states)
            ]
            return Changes(cursor, changes)

    def non_finite(self, ref: RunRef, after: str, pattern: str, limit: int) -> list[str]:
        """See `Store`."""
        with self._reader() as connection:
            with reading(connection):
                run = find_run(connection, *_names(ref))
            found = self._memtable.non_finite(run, _Cursor.parse(after).seq)
            if len(found) <= _FEW_NAMES:
                return sorted(fnmatch.filter(self._memtable.metrics_of(found), pattern))[:limit]
            with reading(connection):
                table = read_names(connection, run, self._name_cache)
        names = fnmatch.filter([name.decode(errors="surrogatepass") for name in table.names()], pattern)
        return [*islice((name for name in names if hash_name(name) in found), limit)]

    def alerts(self, after: int, limit: int) -> list[tuple[RunRef, StoredEvent]]:
        """See `Store`."""
        damaged: list[str] = []
        with self._reader() as connection, self._recording_damage(damaged), reading(connection):
            return read_alerts(connection, after, limit, damaged)

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        self._check_open()
        connection = self._readers.get()
        try:
            with self._checking_damage(), self._read_priority.reading():
                yield connection
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, sqlite3.Error):
                self._failed_at = time.monotonic()
            connection = self._reconnected(connection)
            raise
        except DamagedError as error:
            if self._is_doubtful():
                connection = self._reconnected(connection)
                raise StoreUnavailableError(
                    f"{error}; the disk reported an error, and the read will be retried"
                ) from error
            named_error = name_damage(connection, error)
            if str(named_error) != self._verifier.confirmed:
                self._damage.add(named_error)
            raise named_error from error
        finally:
            self._readers.put(connection)

    def _check_complete(self, connection: sqlite3.Connection, run: int, damaged: list[str] | None = None) -> bool:
        """Return whether a run's processes and series are complete.

        If the catalog has no known damage, the result is True without a check.

        Raises:
            DamagedError: Rows are damaged or missing, and `damaged` is None. Otherwise, a message is added to `damaged`.
        """
        if self._damage.is_catalog_sound:
            return True
        messages: list[str] = []
        with skip_damaged(connection, None if damaged is None else messages):
            check_series(connection, run)
        if damaged is not None:
            damaged += [text for text in messages if text not in damaged]
        return not messages

    def _is_doubtful(self) -> bool:
        """Return whether a recent failure of the disk may be the cause of apparent damage."""
        if self._verifier.confirmed is not None:
            return False
        return self._verifier.problem() is not None or time.monotonic() < self._failed_at + _DOUBT

    @contextmanager
    def _recording_damage(self, damaged: list[str] | None) -> Iterator[None]:
        """Record the damage that code inside the block adds to `damaged`.

        Raises:
            StoreUnavailableError: The disk is failing, so the damage may not be real.
        """
        known = len(damaged or ())
        yield
        if self._is_doubtful() and len(damaged or ()) > known:
            raise StoreUnavailableError(
                "the disk reported errors, so the extent of the damage is unknown; retry the request later"
            )
        for text in (damaged or ())[known:]:
            self._damage.add(DamagedError(text))

    @contextmanager
    def _checking_damage(self) -> Iterator[None]:
        """Start a check of the file if SQLite reports damage to code inside the block.

        Raises:
            DamagedError: The check has confirmed the damage.
        """
        try:
            yield
        except SuspectedDamageError as error:
            self._verifier.suspect(str(error))
            if self._verifier.confirmed is not None:
                raise DamagedError(self._verifier.confirmed, named=True) from error
            raise

    def _connect_reader(self) -> sqlite3.Connection:
        return connect(self._file, read_only=True, filesystem=self._filesystem)

    def _reconnected(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """Replace a failed connection, whose descriptors may be stale. If reconnecting fails, return the old one."""
        try:
            new_connection = self._connect_reader()
        except sqlite3.Error:
            return connection
        connection.close()
        return new_connection

    @contextmanager
    def _snapshot(
        self, ref: RunRef, metrics: Collection[str] | None = None, upto: int | None = None
    ) -> Iterator[tuple[sqlite3.Connection, list[MemtableSnapshot], int]]:
        """Find a run, and yield a consistent view of its data in memory and in the file.

        `metrics` selects the metrics whose points in memory are needed; None selects all. If `upto` is not None, points in
        memory from journal rows after number `upto` are omitted.
        """
        with self._reader() as connection:
            with reading(connection):
                run = find_run(connection, *_names(ref))
            snapshots = self._memtable.snapshots({run}, metrics=_with_steps(metrics), upto=upto)
            with reading(connection):
                yield connection, _unflushed(connection, snapshots), run

    def _upto(self, selection: Selection) -> int:
        """Return the number of the last journal row whose points to read."""
        seq = _UNKNOWN if selection.upto is None else _Cursor.parse(selection.upto).seq
        return self._memtable.last() if seq == _UNKNOWN else seq

    def _mark(self, name: str) -> int:
        with self._reader() as connection, reading(connection):
            row = connection.execute("SELECT value FROM mark WHERE name = ?", (name,)).fetchone()
            return 0 if row is None else int(row[0])

    def _close_readers(self) -> None:
        for _ in range(READERS):
            self._readers.get().close()  # waits for current reads

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailableError("the store is closed")


def _with_steps(metrics: Collection[str] | None) -> Collection[str] | None:
    """Return the metrics whose points in memory are needed to summarize the given metrics."""
    return {*metrics, STEP_METRIC} if metrics else metrics


def _names(ref: RunRef) -> tuple[str, str | None]:
    return ref.run_id, ref.project


def _unflushed(connection: sqlite3.Connection, snapshots: Sequence[MemtableSnapshot]) -> list[MemtableSnapshot]:
    """Return the points that are not in segments: those in bundles, and those of the given snapshots that are in memory only."""
    in_memory = [snapshot for snapshot in snapshots if not commit_log.is_flushed(connection, snapshot.upto)]
    return [bundled(connection, snapshots[-1].selection), *in_memory]


def _existing_runs(connection: sqlite3.Connection, refs: Sequence[RunRef]) -> set[int]:
    run_ids: set[int] = set()
    for ref in refs:
        rows = connection.execute(
            "SELECT id FROM run WHERE run_id = ? AND project = ifnull(?, project) AND NOT deleted", _names(ref)
        )
        run_ids.update(row[0] for row in rows)
    return run_ids


def _recent(connection: sqlite3.Connection) -> set[int]:
    rows = connection.execute("SELECT id FROM run WHERE updated > ? AND NOT deleted", (time.time_ns() - _LATELY,))
    return {row[0] for row in rows}


def _names_of(connection: sqlite3.Connection, run_ids: Collection[int]) -> dict[int, RunRef]:
    rows = connection.execute(f"SELECT id, run_id, project FROM run WHERE id IN ({', '.join(map(str, run_ids))})")
    return {row[0]: RunRef(row[1], row[2]) for row in rows}
