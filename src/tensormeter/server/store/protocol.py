"""The store interface.

A store keeps runs with their processes, series of points, events, and log lines (log records without an event name).

Every implementation guarantees:

- Once `append_*` returns, the request survives a crash of the server process. A failed request can safely be retried.
- A request with a batch ID is stored once. A different payload with the same batch ID is refused.
- A series is identified by (project, run, process, metric, kind, scope, attributes), and a point within a series by its
  time. If several requests contain the same point, the value from the first request is kept. Senders without batch IDs
  can therefore retry safely.
- Reads return everything that earlier `append_*` calls accepted.

`SqliteStore` stores a request completely or not at all, except log lines, which it stores in parts. `ClickHouseStore` may
store part of a request if `append_*` fails. In both cases, a retry completes the request.

A store returns points and run fields as columns. `tensormeter.server.query` implements x axes, sampling, statistics
over processes, and the filtering and sorting of runs.
"""

from collections.abc import Collection, Generator, Mapping, Sequence
from typing import Final, Protocol

from tensormeter.otlp.batch import Attribute, Batch, Event
from tensormeter.otlp.check import Check, no_check
from tensormeter.server.store.models.durability import Syncer
from tensormeter.server.store.models.event_query import ALL_EVENTS, EventQuery
from tensormeter.server.store.models.log_lines import LogPage, LogQuery
from tensormeter.server.store.models.names import FieldKind, NameTable
from tensormeter.server.store.models.point_range import PointRange
from tensormeter.server.store.models.runs import (
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

__all__ = ["STALL_AFTER", "Store"]

STALL_AFTER: Final = 300.0
"""Seconds without points or events after which an unfinished run counts as stalled."""


class Store(Protocol):
    """A store of runs with their points and events.

    Every method may block on the disk, and any number of threads may call it at once. Reads and `append_*` calls block
    each other only briefly, while they work in memory. The owner closes the store once, after all other calls.

    Attributes:
        syncer: Object that syncs commits to disk and reports which commits are durable; None if the store cannot do so.

    Raises:
        StoreUnavailableError: From any method: the call failed, but may succeed later.
        NotFoundError, AmbiguousRunError: From any method that takes a `RunRef`.
        DamagedError: From any method: the requested data is damaged. Other data can still be read.
    """

    @property
    def syncer(self) -> Syncer | None:
        """Object that syncs commits to disk, or None; see the class."""
        ...

    @property
    def takes_blocks(self) -> bool:
        """Whether `append_metrics` accepts batches with blocks; see `decode_blocks`."""
        ...

    def append_metrics(
        self,
        batches: Sequence[Batch],
        *,
        payload: bytes,
        batch_id: str | None = None,
        check: Check = no_check,
    ) -> Receipt:
        """Store the points of one request exactly once.

        Args:
            batches: Decoded points.
            payload: Encoded `ExportMetricsServiceRequest` from which `batches` was decoded.
            batch_id: ID that stays the same in every retry of the request; None if the sender does not identify its
                requests.
            check: Function called repeatedly before the commit. If it raises an exception, nothing is stored.

        Raises:
            BatchConflictError: `batch_id` is already stored with a different payload.
        """
        ...

    def append_events(
        self,
        resources: Sequence[tuple[Mapping[str, Attribute], Sequence[Event]]],
        *,
        payload: bytes,
        batch_id: str | None = None,
        check: Check = no_check,
    ) -> Receipt:
        """Store the events and log lines of one request exactly once. Arguments and errors are as for `append_metrics`."""
        ...

    def projects(self) -> list[ProjectSummary]:
        """Return all projects, ordered by name."""
        ...

    @property
    def stall_after(self) -> float:
        """Seconds without points or events after which an unfinished run counts as stalled."""
        ...

    def changed(self, position: int | None) -> ChangedRuns:
        """Return the runs whose fields have changed since a position.

        The fields of other runs are the same as before, except that runs may have become stalled.

        Args:
            position: Position from an earlier call; None if there is none.
        """
        ...

    def table(
        self,
        project: str | None,
        fields: Sequence[str],
        check: Check = no_check,
        runs: Collection[int] | None = None,
    ) -> RunTable:
        """Return fields of runs in one project or in all projects, in no particular order.

        Args:
            project: Project name; None for all projects.
            fields: Names of `RunSummary` attributes (except `config` and `summary`), `config.KEY` with dots for nested
                objects, and `summary.METRIC.PART` with an attribute of `Summary` as the part, or `value`: what the script
                wrote to the summary, or else the statistic that the definitions of metrics select.
            check: Function called for each field, and repeatedly for large fields. It can raise an exception to stop
                the query.
            runs: Numbers of the runs to return; None for all.
        """
        ...

    def runs(
        self, runs: Sequence[int], metrics: Sequence[str] | None = None, damaged: list[str] | None = None
    ) -> list[RunSummary]:
        """Return runs in the given order, without runs that have since been deleted.

        Args:
            runs: Run numbers from a `RunTable`.
            metrics: Metrics whose summaries are returned; None for all metrics.
            damaged: List that receives a message for each damaged run, which is then omitted; None to raise an error
                instead.
        """
        ...

    def run(self, ref: RunRef, metrics: Sequence[str] | None = None) -> RunSummary:
        """Return one run with the summaries of the given metrics, or of all its metrics."""
        ...

    def summaries(self, ref: RunRef, metrics: Sequence[str]) -> Mapping[str, Summary]:
        """Return the summaries of a run's metrics, by name in ascending order. Other names are ignored.

        Args:
            ref: Run to read.
            metrics: Distinct names of metrics. The method is fast if they are neighbors in the run's list of names.
        """
        ...

    def processes(self, ref: RunRef) -> list[ProcessSummary]:
        """Return the processes of a run, in order of first appearance."""
        ...

    def losses(self, ref: RunRef) -> Mapping[str, int]:
        """Return the number of items that a run's processes dropped, by reason."""
        ...

    def update(self, ref: RunRef, changes: RunChanges) -> None:
        """Apply a user's changes to a run. Later events do not overwrite these changes."""
        ...

    def delete(self, ref: RunRef) -> None:
        """Delete a run with immediate effect. The store refuses later data for the run until the run starts again.

        If the sender does not set a run ID, any data with a time after the deletion starts the run again.
        """
        ...

    def names(self, ref: RunRef) -> NameTable:
        """Return the names of a run's metrics. Repeated calls are fast, because the store caches the table."""
        ...

    def metrics(self, ref: RunRef, names: Sequence[str] | None = None) -> list[MetricSummary]:
        """Return series of a run, ordered by metric, process and attributes.

        Args:
            ref: Run to read.
            names: Distinct names of metrics; None for all. Metrics that the run does not have are ignored.
        """
        ...

    def field_names(self, project: str | None, kind: FieldKind, check: Check = no_check) -> NameTable:
        """Return the names of all config keys, or of all gauges and sums, of the runs in a project or in all projects.

        Config keys of nested objects contain dots. The result may lack names that arrived in the last minute.

        Args:
            project: Project name; None for all projects.
            kind: `config` or `summary`.
            check: Function called repeatedly; it can raise an exception to stop the query.
        """
        ...

    def read(self, ref: RunRef, selection: Selection) -> Reading:
        """Read points of a run.

        Raises:
            TooManyPointsError: The read needs more points than the selection's limit. The message suggests ways to
                narrow the query.
        """
        ...

    def read_rollups(
        self, ref: RunRef, selection: Selection, window: PointRange, blocks: int
    ) -> list[SeriesRollup] | None:
        """Read numeric series, and return long ones as blocks instead of points.

        The series are ordered by metric, process and attributes. Series without points are omitted.

        Args:
            ref: Run to read.
            selection: Selection of numeric series. The selection's range and cursor are ignored. Points inside blocks
                do not count toward the selection's limit.
            window: Range of points to read.
            blocks: Minimum number of blocks for a series to be returned as blocks. Shorter series are returned as
                points.

        Returns:
            The series; None if rollups cannot answer the query. For example, all series are short, or steps are not in
            time order.

        Raises:
            TooManyPointsError: See `read`.
        """
        ...

    def scan(
        self, ref: RunRef, processes: Sequence[str], selection: Selection, window: PointRange, blocks: int
    ) -> Generator[ProcessRollups, None, None]:
        """Read numeric series process by process, so that only the points of a few processes are in memory.

        The iterator holds resources of the store, so close it if not all processes are needed.

        Args:
            ref: Run to read.
            processes: IDs of the processes, which determine the order. Processes without series are omitted.
            selection: See `read_rollups`. The selection's process is ignored, damage raises an error, and the limit
                applies to the points of all processes.
            window: Range of points to read.
            blocks: See `read_rollups`.

        Raises:
            TooManyPointsError: See `read`.
        """
        ...

    def events(self, ref: RunRef, query: EventQuery = ALL_EVENTS) -> EventPage:
        """Return events of a run, newest first, with bodies of up to `MAX_ANSWER_TEXT` characters in total."""
        ...

    def logs(self, ref: RunRef, query: LogQuery, check: Check = no_check) -> LogPage:
        """Return log lines of a run.

        A read that looks for matching lines searches lines in slices until the page is full or the query's time limit is
        reached.

        Args:
            ref: Run to read.
            query: Conditions and limits.
            check: Function called for each slice. It can raise an exception to stop the read.
        """
        ...

    def media(self, ref: RunRef, digest: str) -> tuple[str, bytes]:
        """Return the content type and bytes of an image from a run.

        Raises:
            NotFoundError: The run has no image with this digest.
        """
        ...

    def changes(self, after: str | None, runs: Sequence[RunRef] | None = None) -> Changes:
        """Return changes since a cursor, for the given runs or for all runs. Runs that do not exist are omitted.

        A store keeps changes for a limited time. If the cursor is older, the result contains each of the given runs, or
        every run with recent points or events if no runs are given. The result then names no metrics. If `after` is
        None, the result contains only the current cursor.
        """
        ...

    def non_finite(self, ref: RunRef, after: str, pattern: str, limit: int) -> list[str]:
        """Return the metrics of a run with NaN or infinite values among the numbers that arrived after a cursor.

        The cost depends on the number of new points and of metrics with such values, not on the number of all metrics.

        Args:
            ref: Run to examine.
            after: Cursor. If it is too old, the result is empty; see `changes`.
            pattern: Shell-style pattern that the names of metrics must match, such as `*loss*`.
            limit: Maximum number of names.

        Returns:
            The first matching names in ascending order.
        """
        ...

    def raise_alert(self, run: RunRef, event: Event) -> None:
        """Add a server-created event to a run, as an event of its first process."""
        ...

    def mark_stalled(self, run: RunRef, *, stalled: bool) -> None:
        """Mark a run as stalled, or clear the mark. A start or end of the run also clears the mark."""
        ...

    def alerts(self, after: int, limit: int) -> list[tuple[RunRef, StoredEvent]]:
        """Return alerts (`tensormeter.alert` events) of any run with event IDs greater than `after`, oldest first."""
        ...

    def mark(self, name: str, value: int | None = None) -> int:
        """Return the number stored under a name; 0 if there is none. If `value` is given, store it first.

        The number survives restarts.
        """
        ...

    def problem(self) -> str | None:
        """Return a message about the store's current problem, or None. Never raises or blocks."""
        ...

    def stalled(self) -> str | None:
        """Return a message if the disk does not respond and other calls would block; otherwise None.

        Never raises or blocks.
        """
        ...

    def close(self) -> None:
        """Finish pending work, and release the folder or the connections. Blocks until all accepted data is stored."""
        ...
