"""The implementation of `Store` for ClickHouse."""

import fnmatch
import json
import logging
import threading
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from tensormeter.errors import StoreError
from tensormeter.otlp.batch import Attribute, Batch, Event
from tensormeter.otlp.check import Check, no_check
from tensormeter.server.store.background import Background
from tensormeter.server.store.clickhouse.address import Address
from tensormeter.server.store.clickhouse.arrival_log import Arrived, Log
from tensormeter.server.store.clickhouse.commit import EVENT_COLUMNS, event_row
from tensormeter.server.store.clickhouse.event_reader import EventReader
from tensormeter.server.store.clickhouse.group_commit import GroupCommit
from tensormeter.server.store.clickhouse.keys import Numbers
from tensormeter.server.store.clickhouse.log_lines import LogReader, LogTrimmer
from tensormeter.server.store.clickhouse.name_reader import NameReader
from tensormeter.server.store.clickhouse.pending_request import Request
from tensormeter.server.store.clickhouse.point_counts import PointCounts
from tensormeter.server.store.clickhouse.point_reader import PointReader
from tensormeter.server.store.clickhouse.rollup_reader import RollupReader
from tensormeter.server.store.clickhouse.rowbinary import encode_rows
from tensormeter.server.store.clickhouse.run_reader import Runs
from tensormeter.server.store.clickhouse.schema import TABLES, prepare
from tensormeter.server.store.models.errors import NotFoundError, StoreUnavailableError
from tensormeter.server.store.models.event_query import ALL_EVENTS, EventQuery
from tensormeter.server.store.models.log_lines import LogPage, LogQuery
from tensormeter.server.store.models.names import FieldKind, NameTable
from tensormeter.server.store.models.point_range import PointRange
from tensormeter.server.store.models.runs import (
    MAX_CHANGED_METRICS,
    Change,
    ChangedRuns,
    Changes,
    EventPage,
    ProcessSummary,
    ProjectSummary,
    Receipt,
    RunChanges,
    RunRef,
    RunSummary,
    RunTable,
    StoredEvent,
    Summary,
)
from tensormeter.server.store.models.series import MetricSummary, ProcessRollups, Reading, Selection, SeriesRollup
from tensormeter.server.store.protocol import STALL_AFTER
from tensormeter.server.store.rules.batch_digest import digest
from tensormeter.server.store.rules.events import prepare_event
from tensormeter.server.store.rules.gaps import gaps_of
from tensormeter.server.store.rules.ingest_blocks import blocks_of
from tensormeter.server.store.rules.ingest_lines import line_arrivals
from tensormeter.server.store.rules.ingest_series import Rejections, arrivals_of
from tensormeter.server.store.rules.lifecycle import process_state
from tensormeter.server.store.rules.log_lines import LOG_LIMIT, LogLimit

__all__ = ["ClickHouseStore"]

_LATELY: Final = 24 * 3600 * 10**9
_LOOK: Final = 5.0
_DELETED_COLUMNS: Final = {"run": "Q", "project": "s", "run_id": "s", "time": "q"}
_ANNOTATION_COLUMNS: Final = {"run": "Q", "field": "s", "value": "s", "number": "Q"}

_log = logging.getLogger(__name__)


class ClickHouseStore:
    """A `Store` in a ClickHouse database. See `Store` for threads and errors.

    Any number of servers can use a database at the same time. Their clocks must agree to within a few minutes. If two
    servers store different values for one point, the value that arrived first wins.
    """

    takes_blocks: Final = True

    syncer: Final = None
    """ClickHouse's settings decide which commits survive a power failure; see docs/server.md."""

    def __init__(
        self,
        address: Address,
        *,
        commit_interval: float = 0.1,
        stall_after: float = STALL_AFTER,
        retention_days: float | None = None,
        log_limit: LogLimit = LOG_LIMIT,
    ) -> None:
        """Connect, and create missing tables.

        Args:
            address: Address of the database.
            commit_interval: Minimum seconds between two commits. Requests that arrive in the meantime share the next
                commit.
            stall_after: Seconds without points or events after which an unfinished run counts as stalled.
            retention_days: Days after arrival at which points, events and log lines are removed; None to keep them. The setting
                has no effect on tables that already exist.
            log_limit: Maximum number and size of the log lines of a run.

        Raises:
            StoreError: ClickHouse is unreachable, rejected a statement, or has tables from a newer version.
        """
        try:
            self._connection = prepare(address, retention_days)
        except StoreUnavailableError as error:
            raise StoreError(f"cannot open the store: {error}") from None
        self._local = f"{{}}_local ON CLUSTER '{address.cluster}'" if address.cluster else "{}"
        self._numbers = Numbers()
        self._log = Log(self._connection)
        counts = PointCounts(self._connection)
        self._runs = Runs(self._connection, counts, stall_after)
        self._points = PointReader(self._connection, self._runs, counts)
        self._rollups = RollupReader(self._connection, self._points)
        self._events = EventReader(self._connection, self._runs)
        self._name_reader = NameReader(self._connection)
        self._log_reader = LogReader(self._connection, self._log)
        trimmer = LogTrimmer(self._connection, log_limit, self._local.format("log"))
        self._group_commit = GroupCommit(self._connection, self._numbers, self._log, trimmer, commit_interval)
        self._problem: str | None = None
        self._closed = False
        self._closing = threading.Lock()
        try:
            self._log.begin(self._numbers.take())
        except BaseException:
            self._connection.close()
            raise
        self._background = Background("tensormeter-clickhouse", self._look, _LOOK)
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
        self._check_open()
        arrivals, rejections = arrivals_of(batches, check)
        blocks = blocks_of(batches, rejections, check)
        gaps = gaps_of(batches, check)
        del batches  # frees memory if the caller holds no reference either
        content = digest("metrics", payload)
        request = Request(
            content,
            batch_id,
            time.time_ns(),
            "data point",
            arrivals=arrivals,
            blocks=blocks,
            gaps=gaps,
            rejections=rejections,
        )
        return self._group_commit.commit(request)

    def append_events(
        self,
        resources: Sequence[tuple[Mapping[str, Attribute], Sequence[Event]]],
        *,
        payload: bytes,
        batch_id: str | None = None,
        check: Check = no_check,
    ) -> Receipt:
        """See `Store`."""
        self._check_open()
        content = digest("logs", payload)
        received = time.time_ns()
        rejections = Rejections()
        lines = [*line_arrivals(resources, received, rejections, check)]
        request = Request(
            content, batch_id, received, "log record", resources=resources, lines=lines, rejections=rejections
        )
        return self._group_commit.commit(request)

    def projects(self) -> list[ProjectSummary]:
        """See `Store`."""
        self._check_open()
        return self._runs.projects()

    @property
    def stall_after(self) -> float:
        """See `Store`."""
        return self._runs.stall_after

    def changed(self, position: int | None) -> ChangedRuns:
        """See `Store`."""
        self._check_open()
        return self._runs.changed(position)

    def table(
        self,
        project: str | None,
        fields: Sequence[str],
        check: Check = no_check,
        runs: Collection[int] | None = None,
    ) -> RunTable:
        """See `Store`."""
        self._check_open()
        return self._runs.table(project, fields, check, runs)

    def runs(
        self, runs: Sequence[int], metrics: Sequence[str] | None = None, damaged: list[str] | None = None
    ) -> list[RunSummary]:
        """See `Store`."""
        self._check_open()
        return self._runs.load(runs, metrics)

    def run(self, ref: RunRef, metrics: Sequence[str] | None = None) -> RunSummary:
        """See `Store`."""
        summaries = self._runs.load([self._find(ref)], metrics)
        if not summaries:  # deleted in the meantime
            raise NotFoundError(f"there is no run {ref.run_id!r}; list the runs to see their IDs")
        return summaries[0]

    def summaries(self, ref: RunRef, metrics: Sequence[str]) -> Mapping[str, Summary]:
        """See `Store`."""
        return self._runs.summaries(self._find(ref), metrics)

    def processes(self, ref: RunRef) -> list[ProcessSummary]:
        """See `Store`."""
        rows = self._connection.rows(
            "SELECT process, tupleElement(max(resource), 2), tupleElement(max(resource), 3), max(started), tupleElement(max(ended), 1),"
            f" tupleElement(max(ended), 3), tupleElement(max(losses), 2) FROM process WHERE run = {self._find(ref)} GROUP BY process"
            " ORDER BY min(seen), process"
        )
        return [
            ProcessSummary(
                process,
                attempt,
                json.loads(resource),
                process_state(started or None, ended or None, end_state or None),
                started or None,
                json.loads(losses or "{}"),
            )
            for process, attempt, resource, started, ended, end_state, losses in rows
        ]

    def losses(self, ref: RunRef) -> Mapping[str, int]:
        """See `Store`."""
        rows = self._connection.rows(
            f"SELECT tupleElement(max(losses), 2) FROM process WHERE run = {self._find(ref)} GROUP BY process"
        )
        losses: dict[str, int] = {}
        for (text,) in rows:
            for reason, count in json.loads(text or "{}").items():
                losses[reason] = losses.get(reason, 0) + count
        return losses

    def update(self, ref: RunRef, changes: RunChanges) -> None:
        """See `Store`."""
        run = self._find(ref)
        fields = {
            "name": changes.name,
            "tags": None if changes.tags is None else list(changes.tags),
            "notes": changes.notes,
            "group": changes.group,
            "job_type": changes.job_type,
            "archived": changes.archived,
        }
        self._annotate(run, {field: value for field, value in fields.items() if value is not None})

    def delete(self, ref: RunRef) -> None:
        """See `Store`. ClickHouse removes the rows in the background."""
        run = self._find(ref)
        names = self._runs.names([run])[run]
        row = (run, names.project, names.run_id, time.time_ns())
        self._connection.insert("deleted", _DELETED_COLUMNS, encode_rows(_DELETED_COLUMNS, [row]))
        for table in TABLES:
            if table.name not in ("deleted", "batch", "arrival"):
                name = self._local.format(table.name)
                try:
                    self._connection.execute(f"ALTER TABLE {name} DELETE WHERE run = {run} SETTINGS mutations_sync = 0")
                except StoreUnavailableError as error:
                    # The run is not visible any more, but its rows still take up space.
                    _log.warning("tensormeter: cannot delete rows of a deleted run from %s: %s", table.name, error)

    def names(self, ref: RunRef) -> NameTable:
        """See `Store`."""
        return self._name_reader.names(self._find(ref))

    def metrics(self, ref: RunRef, names: Sequence[str] | None = None) -> list[MetricSummary]:
        """See `Store`."""
        return self._points.metrics(self._find(ref), names)

    def field_names(self, project: str | None, kind: FieldKind, check: Check = no_check) -> NameTable:
        """See `Store`."""
        self._check_open()
        return self._name_reader.field_names(project, kind, check)

    def read(self, ref: RunRef, selection: Selection) -> Reading:
        """See `Store`."""
        run = self._find(ref)
        if selection.upto is None:  # points that arrive from now on are left to a later read
            selection = replace(selection, upto=self._log.cursor())
        cursor = selection.upto
        assert cursor is not None
        arrived = None if selection.after is None else self._log.since(selection.after, run, upto=cursor)
        started, attempts = (
            self._runs.started(run),
            self._runs.attempts(run, [*selection.metrics, *selection.shadowing]),
        )
        rows = self._points.series(run, selection)
        if arrived is not None and not any(commit.read_all for commit in arrived):
            series = self._points.read_new(run, rows, arrived, selection)
            return Reading(series, cursor, complete=False, started=started, attempts=attempts)
        series = self._points.read(run, rows, selection)
        return Reading(series, cursor, complete=True, started=started, attempts=attempts)

    def read_rollups(
        self, ref: RunRef, selection: Selection, window: PointRange, blocks: int
    ) -> list[SeriesRollup] | None:
        """See `Store`."""
        return self._rollups.read(self._find(ref), selection, window, blocks)

    def scan(
        self, ref: RunRef, processes: Sequence[str], selection: Selection, window: PointRange, blocks: int
    ) -> Generator[ProcessRollups, None, None]:
        """See `Store`. All series are read as points."""
        yield from self._points.scan(self._find(ref), processes, selection, window)

    def events(self, ref: RunRef, query: EventQuery = ALL_EVENTS) -> EventPage:
        """See `Store`."""
        return self._events.events(self._find(ref), query)

    def logs(self, ref: RunRef, query: LogQuery, check: Check = no_check) -> LogPage:
        """See `Store`."""
        return self._log_reader.read(self._find(ref), query, check)

    def media(self, ref: RunRef, digest: str) -> tuple[str, bytes]:
        """See `Store`."""
        media = self._events.media(self._find(ref), digest)
        if media is None:
            raise NotFoundError(
                f"run {ref.run_id!r} has no media {digest[:80]!r}; the run's events contain the digests of its media"
            )
        return media

    def changes(self, after: str | None, runs: Sequence[RunRef] | None = None) -> Changes:
        """See `Store`."""
        self._check_open()
        cursor = self._log.cursor()
        if after is None:
            return Changes(cursor, [])
        arrived = self._log.since(after)
        wanted = None if runs is None else self._runs.existing(runs)
        grown: dict[int, set[str]] = {}
        eventful: set[int] = set()
        logged: set[int] = set()
        for commit in arrived or ():
            grown.setdefault(commit.run, set()).update(commit.metrics)
            if commit.events:
                eventful.add(commit.run)
            if commit.logs:
                logged.add(commit.run)
        if any(commit.many for commit in arrived or ()):
            for run, metrics in self._log.metrics(after, MAX_CHANGED_METRICS + 1).items():
                grown.setdefault(run, set()).update(metrics)
        if wanted is None:
            wanted = set(grown) if arrived is not None else self._runs.recent(time.time_ns() - _LATELY)
        states = self._runs.states(wanted)
        many = {run for run, metrics in grown.items() if len(metrics) > MAX_CHANGED_METRICS}
        changes = [
            Change(
                names,
                [] if run in many else sorted(grown.get(run, ())),
                state,
                arrived is None or run in eventful,
                many=run in many,
                logs=arrived is None or run in logged,
            )
            for run, (names, state) in sorted(states.items())
        ]
        return Changes(cursor, changes)

    def non_finite(self, ref: RunRef, after: str, pattern: str, limit: int) -> list[str]:
        """See `Store`."""
        run = self._find(ref)
        arrived = self._log.since(after, run)
        metrics = self._points.non_finite(run, arrived) if arrived else []
        return fnmatch.filter(metrics, pattern)[:limit]

    def raise_alert(self, run: RunRef, event: Event) -> None:
        """See `Store`."""
        key = self._find(run)
        prepared = prepare_event(event)
        if isinstance(prepared, str):
            raise StoreError(f"the alert cannot be stored: {prepared}")
        process = self._connection.rows(
            f"SELECT process FROM process WHERE run = {key} GROUP BY process ORDER BY min(seen), process LIMIT 1"
        )[0][0]
        with self._group_commit.alone() as number:
            row = event_row(key, process, event, prepared, time=event.time, number=number)
            self._connection.insert("event", EVENT_COLUMNS, encode_rows(EVENT_COLUMNS, [row]))
            self._log.write([Arrived(key, number, 0, (), events=True)])

    def mark_stalled(self, run: RunRef, *, stalled: bool) -> None:
        """See `Store`."""
        self._annotate(self._find(run), {"stalled": stalled})

    def alerts(self, after: int, limit: int) -> list[tuple[RunRef, StoredEvent]]:
        """See `Store`."""
        self._check_open()
        return self._events.alerts(after, limit)

    def mark(self, name: str, value: int | None = None) -> int:
        """See `Store`."""
        self._check_open()
        if value is not None:
            self._annotate(0, {f"mark {name}": value})
            return value
        rows = self._connection.rows(
            "SELECT value FROM annotation FINAL WHERE run = 0 AND field = {name:String}", name=f"mark {name}"
        )
        return int(json.loads(rows[0][0])) if rows else 0

    def problem(self) -> str | None:
        """See `Store`. Damage found by a read is reported until the store is reopened."""
        return self._connection.damage or self._problem

    def stalled(self) -> str | None:
        """See `Store`. Always None, because requests to ClickHouse have a time limit."""
        return None

    def flush(self) -> None:
        """Do nothing, because ClickHouse merges its data in the background."""
        self._check_open()

    def close(self) -> None:
        """See `Store`."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._background.stop()
        self._connection.close()

    def _look(self) -> None:
        """Check that ClickHouse responds, and keep this server's entries in the arrival log recent."""
        try:
            self._connection.rows("SELECT 1")
            with self._group_commit.alone() as number:
                self._log.repeat(number)
        except StoreUnavailableError as error:
            self._problem = str(error)
            self._group_commit.forget()
            raise
        self._problem = None

    def _annotate(self, run: int, fields: Mapping[str, Any]) -> None:
        if fields:
            number = self._numbers.take()
            rows = [(run, field, json.dumps(value), number) for field, value in fields.items()]
            self._connection.insert("annotation", _ANNOTATION_COLUMNS, encode_rows(_ANNOTATION_COLUMNS, rows))

    def _find(self, ref: RunRef) -> int:
        self._check_open()
        return self._runs.find(ref)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailableError("the store is closed")
