"""The interface of a store.

A store keeps runs, their processes, their series of points and their events.

Every implementation promises:

- A batch is stored whole or not at all. When `append_*` returns, the batch survives the death of the process.
- A batch id is stored once. The same id with another payload is refused.
- A series is (project, run, process, metric, kind, scope, attributes), and the time identifies a point in it. If two
  batches contain the same point, the first one wins. So senders without batch ids can retry safely.
- The next read returns everything that `append_*` has accepted.

A store returns columns. Axes, sampling, statistics over processes, and filters and order of lists of runs are up to the API.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from tensormeter.otlp.batch import Attribute, Batch, Event
from tensormeter.otlp.check import Check, no_check
from tensormeter.server.store.models.durability import Syncer
from tensormeter.server.store.models.event_query import ALL_EVENTS, EventQuery
from tensormeter.server.store.models.point_range import PointRange
from tensormeter.server.store.models.runs import (
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
)
from tensormeter.server.store.models.series import MetricSummary, Reading, Selection, SeriesRollup

__all__ = ["STALL_AFTER", "Store"]

STALL_AFTER: Final = 300.0
"""Seconds without points and events after which a run that has not ended counts as stalled."""


class Store(Protocol):
    """Keeps runs and answers queries about them.

    Threads: every method blocks on the disk and may be called on any thread, by any number of threads at once. Reads and
    `append_*` do not wait for each other, except for short work in memory. The owner of the store closes it once, after the last
    call.

    Attributes:
        syncer: Makes commits durable and reports their durability; None if the store does not report it.

    Raises:
        StoreUnavailableError: From any method: it failed for now; the same call may succeed later.
        NotFoundError, AmbiguousRunError: From any method that takes a `RunRef`.
        DamagedError: From any method: the requested data is damaged. Other data can still be read.
    """

    @property
    def syncer(self) -> Syncer | None:
        """See the attribute."""
        ...

    def append_metrics(
        self,
        batches: Sequence[Batch],
        *,
        payload: bytes,
        batch_id: str | None = None,
        check: Check = no_check,
    ) -> Receipt:
        """Store the points of one request, once.

        Args:
            batches: Decoded points.
            payload: `ExportMetricsServiceRequest` that `decode_metrics` decoded to `batches`.
            batch_id: Name of the request, the same in every retry; None if the sender does not name its requests.
            check: Callable that is called often before the commit; an exception of it ends the call, and nothing is stored.

        Raises:
            BatchConflictError: `batch_id` was stored with another payload.
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
        """Store the events of one request, once; arguments and errors as for `append_metrics`."""
        ...

    def projects(self) -> list[ProjectSummary]:
        """Return all projects, by name."""
        ...

    def table(self, project: str | None, fields: Sequence[str], check: Check = no_check) -> RunTable:
        """Return fields of all runs of a project, or of all projects, in no particular order.

        Args:
            project: Name of the project; None for all projects.
            fields: Names of `RunSummary`'s attributes (except `config` and `summary`), `config.KEY` with dots that lead into
                nested objects, and `summary.METRIC.PART` with the parts of `Summary`.
            check: Callable to call for each field, and repeatedly within long ones. Its exceptions end the work.
        """
        ...

    def runs(
        self, runs: Sequence[int], metrics: Sequence[str] | None = None, damaged: list[str] | None = None
    ) -> list[RunSummary]:
        """Return runs of a `RunTable`, in the given order, without runs that were deleted meanwhile.

        Args:
            runs: Numbers of the runs, see `RunTable`.
            metrics: Metrics whose summaries are returned; None for all.
            damaged: List that a message is appended to for each damaged run, which is left out; None to raise an error instead.
        """
        ...

    def run(self, ref: RunRef) -> RunSummary:
        """Return one run, with all summaries."""
        ...

    def processes(self, ref: RunRef) -> list[ProcessSummary]:
        """Return the processes of a run, in the order in which they first appeared."""
        ...

    def losses(self, ref: RunRef) -> Mapping[str, int]:
        """Return the number of items that the processes of a run dropped, by reason."""
        ...

    def update(self, ref: RunRef, changes: RunChanges) -> None:
        """Apply a user's changes to a run. Events that arrive later do not overwrite them."""
        ...

    def delete(self, ref: RunRef) -> None:
        """Delete a run. It disappears at once; points and events that arrive later are refused until the run starts again."""
        ...

    def metrics(self, ref: RunRef) -> list[MetricSummary]:
        """Return every series of a run, by metric, process and attributes."""
        ...

    def read(self, ref: RunRef, selection: Selection) -> Reading:
        """Read points of a run.

        Raises:
            TooManyPointsError: The read needs more points than the limit of the selection; the message names ways to narrow it.
        """
        ...

    def read_rollups(
        self, ref: RunRef, selection: Selection, window: PointRange, blocks: int
    ) -> list[SeriesRollup] | None:
        """Read series of numbers that are too long to read every point, by metric, process and attributes; none without points.

        Args:
            ref: Run to read.
            selection: Selection of numbers. Its range and cursor are ignored. Points inside blocks do not count towards its limit.
            window: Points to read.
            blocks: Minimum number of blocks of a series. Shorter series are returned as points.

        Returns:
            None if only points can answer: all series are short, or steps are not in the order of time.

        Raises:
            TooManyPointsError: See `read`.
        """
        ...

    def events(self, ref: RunRef, query: EventQuery = ALL_EVENTS) -> EventPage:
        """Return events of a run, the newest first. There are fewer if their bodies together would exceed `MAX_ANSWER_TEXT`."""
        ...

    def media(self, ref: RunRef, digest: str) -> tuple[str, bytes]:
        """Return content type and bytes of an image of a run.

        Raises:
            NotFoundError: The run has no image with this digest.
        """
        ...

    def changes(self, after: str | None, runs: Sequence[RunRef] | None = None) -> Changes:
        """Return the changes since a cursor, of these runs or of all; runs that do not exist are left out.

        A store remembers changes for some time only. For an older cursor, it names every requested run, or every run with recent
        points or events, without metrics. Without `after`, it returns only its present cursor.
        """
        ...

    def raise_alert(self, run: RunRef, event: Event) -> None:
        """Add an event that the server created to a run, as an event of the run's first process."""
        ...

    def mark_stalled(self, run: RunRef, *, stalled: bool) -> None:
        """Set or clear the mark that a run makes no steps. Start and end of the run clear it, too."""
        ...

    def alerts(self, after: int, limit: int) -> list[tuple[RunRef, StoredEvent]]:
        """Return alerts (events named `tensormeter.alert`) of all runs with an id greater than `after`, the oldest first."""
        ...

    def mark(self, name: str, value: int | None = None) -> int:
        """Return a number that outlives the process, 0 at first; set it to `value` before, if given."""
        ...

    def problem(self) -> str | None:
        """Return a message for people about the present problem of the store, or None. Never raises and never blocks."""
        ...

    def stalled(self) -> str | None:
        """Return a message for people if the disk does not respond, so that no method would return now, or None.

        Never raises and never blocks.
        """
        ...

    def close(self) -> None:
        """Finish pending work and release the folder. Blocks until everything is on disk."""
        ...
