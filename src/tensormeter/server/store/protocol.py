"""The interface of a store.

A store keeps runs, their processes, their series of points and their events.
`SqliteStore` (module `sqlite`) is the implementation that ships.

What every implementation promises:

- A batch is stored whole or not at all, and it is durable against the death of the process when `append_*` returns.
- A batch id is stored once. The same id with another payload is refused.
- A series is (project, run, process, metric, kind, scope, attributes), and a point of it is unique by its time. Where two
  batches carry the same point, the one that arrived first wins; that is what makes senders without batch ids safe to retry.
- What `append_*` has accepted is visible to the next read.

What the API makes of points (axes, sampling, statistics over processes) and of lists of runs (filters, order) is none of a
store's business: it hands out columns.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from tensormeter.otlp.batch import Attribute, Batch, Event
from tensormeter.otlp.check import Check, no_check
from tensormeter.server.store.models.durability import Syncer
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
from tensormeter.server.store.models.series import MetricSummary, Reading, Selection, Thinned

__all__ = ["STALL_AFTER", "Store"]

STALL_AFTER: Final = 300.0
"""Seconds without any sign of life after which a run that has not ended counts as stalled."""


class Store(Protocol):
    """Threads: every method blocks on the disk and may be called on any thread, by any number at once.

    Reads do not wait for `append_*`, nor the other way round, beyond moments of work in memory.
    Whoever opened the store closes it, once, after the last call.

    Attributes:
        syncer: Knows what survives a loss of power; None if the store does not say.

    Raises:
        StoreUnavailableError: From any method: not now; the same call may succeed later.
        NotFoundError, AmbiguousRunError: From any method that takes a `RunRef`.
        DamagedError: From any method: what was asked for is damaged. What is not can still be read.
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
            batches: The points.
            payload: The `ExportMetricsServiceRequest` that `decode_metrics` made `batches` of.
            batch_id: Names the request over retries; None if the sender gave no name.
            check: Called again and again before the commit; whatever it raises ends the call, and nothing is stored.

        Raises:
            BatchConflictError: `batch_id` is known with another payload.
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
        """All projects, by name."""
        ...

    def table(self, project: str | None, fields: Sequence[str], check: Check = no_check) -> RunTable:
        """Fields of all runs of a project, or of all projects, in no particular order.

        Args:
            fields: Names of `RunSummary`'s attributes (but `config` and `summary`), `config.KEY` with dots that go into
                nested objects, and `summary.METRIC.PART` with the parts of `Summary`.
            check: Called for each field, and now and then within one; whatever it raises ends the work.
        """
        ...

    def runs(
        self, runs: Sequence[int], metrics: Sequence[str] | None = None, damaged: list[str] | None = None
    ) -> list[RunSummary]:
        """Runs of a `RunTable`, in the order asked for, without those that are gone by now.

        Args:
            metrics: Whose summaries are wanted; None: all.
            damaged: Runs that are damaged are left out, and a text about each appended here; None: they are an error.
        """
        ...

    def run(self, ref: RunRef) -> RunSummary:
        """One run, with all summaries."""
        ...

    def processes(self, ref: RunRef) -> list[ProcessSummary]:
        """The processes of a run, in the order in which they were first seen."""
        ...

    def losses(self, ref: RunRef) -> Mapping[str, int]:
        """What the processes of a run said they had to drop: counts by reason."""
        ...

    def update(self, ref: RunRef, changes: RunChanges) -> None:
        """Change what users say about a run. What is sent for the run later does not overwrite it."""
        ...

    def delete(self, ref: RunRef) -> None:
        """Delete a run. It is gone at once; what still arrives for it is refused until it is started anew."""
        ...

    def metrics(self, ref: RunRef) -> list[MetricSummary]:
        """Every series of a run, by metric, process and attributes."""
        ...

    def read(self, ref: RunRef, selection: Selection) -> Reading:
        """Points of a run.

        Raises:
            TooManyPointsError: More than the selection's limit; the message says how to ask for less.
        """
        ...

    def thin(self, ref: RunRef, selection: Selection, window: PointRange, blocks: int) -> list[Thinned] | None:
        """Series of numbers that are too long to read every point of, by metric, process and attributes; none without points.

        Args:
            selection: Of numbers. Its range and cursor do not count; points in blocks are not looked at.
            window: Which points.
            blocks: How many blocks a series is cut into, at least; one that is not long enough for that is given in points.

        Returns:
            None if only points can answer: there is nothing but short series, or steps are not in the order of time.

        Raises:
            TooManyPointsError: As for `read`.
        """
        ...

    def events(
        self,
        ref: RunRef,
        *,
        name: str | None = None,
        key: str | None = None,
        start: int | None = None,
        stop: int | None = None,
        limit: int = 1000,
        before: tuple[int, int] | None = None,
        max_body: int | None = None,
    ) -> EventPage:
        """Events of a run, the newest first.

        Args:
            name: Only of this name; a last `*` stands for anything.
            key: Only those whose attribute `tensormeter.key` is this.
            start: Only with time >= start.
            stop: Only with time < stop.
            limit: How many at most. There are fewer where their bodies would be more than `MAX_ANSWER_TEXT` together.
            before: Only those that come after the event of this time and id in the list.
            max_body: Bodies of more characters as JSON are None; None for no limit.
        """
        ...

    def media(self, ref: RunRef, digest: str) -> tuple[str, bytes]:
        """Content type and bytes of an image of a run.

        Raises:
            NotFoundError: There is none.
        """
        ...

    def changes(self, after: str | None, runs: Sequence[RunRef] | None = None) -> Changes:
        """What is new since a cursor, of these runs or of all; runs that do not exist are passed over.

        If the store does not know any more what has changed since, it names every run asked for, or every one that
        something arrived for lately, with no metrics. Without `after` it only says where it is.
        """
        ...

    def raise_alert(self, run: RunRef, event: Event) -> None:
        """Store an event that the server itself adds to a run, beside those of the run's first process."""
        ...

    def mark_stalled(self, run: RunRef, *, stalled: bool) -> None:
        """Say that a run makes no steps, or does again. Its own start or end takes it back."""
        ...

    def alerts(self, after: int, limit: int) -> list[tuple[RunRef, StoredEvent]]:
        """Alerts (events named `tensormeter.alert`) of all runs with an id greater than `after`, the oldest first."""
        ...

    def mark(self, name: str, value: int | None = None) -> int:
        """A number that outlives the process, 0 at first: sets it to `value`, if given, and returns it."""
        ...

    def problem(self) -> str | None:
        """What is wrong with the store at the moment, for people, or None. Never raises and never blocks."""
        ...

    def stalled(self) -> str | None:
        """Why no method would return now, for people, or None: the disk does not answer. Never raises and never blocks."""
        ...

    def close(self) -> None:
        """Finish what is under way and release the folder. Blocks until everything is on disk."""
        ...
