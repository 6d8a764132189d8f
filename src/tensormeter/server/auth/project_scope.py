"""Access to a single project of a store, for requests whose token is limited to that project.

Handlers access a store only through `Stores`, so each request can reach only the permitted part of the store.
"""

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager

from starlette.requests import Request

from tensormeter.errors import StoreError
from tensormeter.otlp.batch import Attribute, Batch, Event
from tensormeter.otlp.check import Check, no_check
from tensormeter.server.auth.authenticator import Access
from tensormeter.server.store import (
    BatchConflictError,
    ChangedRuns,
    Changes,
    EventPage,
    MetricSummary,
    NotFoundError,
    PointRange,
    ProcessSummary,
    ProjectSummary,
    Reading,
    Receipt,
    RunChanges,
    RunRef,
    RunSummary,
    RunTable,
    Selection,
    SeriesRollup,
    Store,
    StoredEvent,
    Summary,
)
from tensormeter.server.store.models.durability import Syncer
from tensormeter.server.store.models.event_query import ALL_EVENTS, EventQuery
from tensormeter.server.store.models.log_lines import LogPage, LogQuery
from tensormeter.server.store.models.names import FieldKind, NameTable
from tensormeter.server.store.models.series import ProcessRollups
from tensormeter.server.store.rules.resource_identity import identify

__all__ = ["ForbiddenError", "ProjectStore", "Stores"]


class ForbiddenError(StoreError):
    """The request's token does not allow this operation."""


class Stores:
    """Provider of the part of a store that a request may access."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def stalled(self) -> str | None:
        """Return why the store is unresponsive, or None if it is responsive. Does not block."""
        return self._store.stalled()

    def of(self, request: Request) -> Store:
        """Return the whole store, or a view of the single project to which the request's token is limited."""
        access: Access = request.state.access
        return self._store if access.project is None else ProjectStore(self._store, access.project)


class ProjectStore:
    """A `Store` limited to a single project. Runs of other projects are not found, and data for them is refused.

    Batch IDs are scoped to the project. The same ID in another project, or from a sender with access to all projects,
    identifies a different batch.
    """

    def __init__(self, store: Store, project: str) -> None:
        """Wrap `store`, which the caller opens and closes."""
        self._store = store
        self._project = project

    @property
    def syncer(self) -> Syncer | None:
        """See `Store`."""
        return self._store.syncer

    @property
    def takes_blocks(self) -> bool:
        """See `Store`."""
        return self._store.takes_blocks

    def append_metrics(
        self,
        batches: Sequence[Batch],
        *,
        payload: bytes,
        batch_id: str | None = None,
        check: Check = no_check,
    ) -> Receipt:
        """See `Store`. If any batch belongs to another project, nothing is stored, and ForbiddenError is raised."""
        for batch in batches:
            check()
            self._check(batch.resource)
        with self._batch(batch_id) as name:
            return self._store.append_metrics(batches, payload=payload, batch_id=name, check=check)

    def append_events(
        self,
        resources: Sequence[tuple[Mapping[str, Attribute], Sequence[Event]]],
        *,
        payload: bytes,
        batch_id: str | None = None,
        check: Check = no_check,
    ) -> Receipt:
        """See `Store`. If any resource belongs to another project, nothing is stored, and ForbiddenError is raised."""
        for attributes, _ in resources:
            check()
            self._check(attributes)
        with self._batch(batch_id) as name:
            return self._store.append_events(resources, payload=payload, batch_id=name, check=check)

    def projects(self) -> list[ProjectSummary]:
        """See `Store`."""
        return [summary for summary in self._store.projects() if summary.project == self._project]

    @property
    def stall_after(self) -> float:
        """See `Store`."""
        return self._store.stall_after

    def changed(self, position: int | None) -> ChangedRuns:
        """See `Store`."""
        return self._store.changed(position)

    def table(
        self,
        project: str | None,
        fields: Sequence[str],
        check: Check = no_check,
        runs: Collection[int] | None = None,
    ) -> RunTable:
        """See `Store`."""
        if project not in (None, self._project):
            return RunTable([], {name: [] for name in fields})
        return self._store.table(self._project, fields, check, runs)

    def runs(
        self, runs: Sequence[int], metrics: Sequence[str] | None = None, damaged: list[str] | None = None
    ) -> list[RunSummary]:
        """See `Store`."""
        return [run for run in self._store.runs(runs, metrics, damaged) if run.project == self._project]

    def run(self, ref: RunRef, metrics: Sequence[str] | None = None) -> RunSummary:
        """See `Store`."""
        return self._store.run(self._scoped(ref), metrics)

    def summaries(self, ref: RunRef, metrics: Sequence[str]) -> Mapping[str, Summary]:
        """See `Store`."""
        return self._store.summaries(self._scoped(ref), metrics)

    def processes(self, ref: RunRef) -> list[ProcessSummary]:
        """See `Store`."""
        return self._store.processes(self._scoped(ref))

    def losses(self, ref: RunRef) -> Mapping[str, int]:
        """See `Store`."""
        return self._store.losses(self._scoped(ref))

    def update(self, ref: RunRef, changes: RunChanges) -> None:
        """See `Store`."""
        self._store.update(self._scoped(ref), changes)

    def delete(self, ref: RunRef) -> None:
        """See `Store`."""
        self._store.delete(self._scoped(ref))

    def names(self, ref: RunRef) -> NameTable:
        """See `Store`."""
        return self._store.names(self._scoped(ref))

    def metrics(self, ref: RunRef, names: Sequence[str] | None = None) -> list[MetricSummary]:
        """See `Store`."""
        return self._store.metrics(self._scoped(ref), names)

    def field_names(self, project: str | None, kind: FieldKind, check: Check = no_check) -> NameTable:
        """See `Store`."""
        if project not in (None, self._project):
            return NameTable.of(())
        return self._store.field_names(self._project, kind, check)

    def read(self, ref: RunRef, selection: Selection) -> Reading:
        """See `Store`."""
        return self._store.read(self._scoped(ref), selection)

    def read_rollups(
        self, ref: RunRef, selection: Selection, window: PointRange, blocks: int
    ) -> list[SeriesRollup] | None:
        """See `Store`."""
        return self._store.read_rollups(self._scoped(ref), selection, window, blocks)

    def scan(
        self, ref: RunRef, processes: Sequence[str], selection: Selection, window: PointRange, blocks: int
    ) -> Generator[ProcessRollups, None, None]:
        """See `Store`."""
        return self._store.scan(self._scoped(ref), processes, selection, window, blocks)

    def events(self, ref: RunRef, query: EventQuery = ALL_EVENTS) -> EventPage:
        """See `Store`."""
        return self._store.events(self._scoped(ref), query)

    def logs(self, ref: RunRef, query: LogQuery, check: Check = no_check) -> LogPage:
        """See `Store`."""
        return self._store.logs(self._scoped(ref), query, check)

    def media(self, ref: RunRef, digest: str) -> tuple[str, bytes]:
        """See `Store`."""
        return self._store.media(self._scoped(ref), digest)

    def changes(self, after: str | None, runs: Sequence[RunRef] | None = None) -> Changes:
        """See `Store`."""
        refs = None if runs is None else [RunRef(ref.run_id, self._project) for ref in runs if self._is_visible(ref)]
        changes = self._store.changes(after, refs)
        return Changes(changes.cursor, [change for change in changes.changes if change.run.project == self._project])

    def non_finite(self, ref: RunRef, after: str, pattern: str, limit: int) -> list[str]:
        """See `Store`."""
        return self._store.non_finite(self._scoped(ref), after, pattern, limit)

    def raise_alert(self, run: RunRef, event: Event) -> None:
        """Raise ForbiddenError, because requests may not call this method."""
        raise ForbiddenError("only the server itself raises alerts")

    def mark_stalled(self, run: RunRef, *, stalled: bool) -> None:
        """Raise ForbiddenError, because requests may not call this method."""
        raise ForbiddenError("only the server itself marks runs as stalled")

    def alerts(self, after: int, limit: int) -> list[tuple[RunRef, StoredEvent]]:
        """Raise ForbiddenError, because requests may read only the events of one run."""
        raise ForbiddenError("only the server itself reads the alerts of all runs")

    def mark(self, name: str, value: int | None = None) -> int:
        """Raise ForbiddenError, because requests may not call this method."""
        raise ForbiddenError("only the server itself stores marks")

    def problem(self) -> str | None:
        """See `Store`."""
        return self._store.problem()

    def stalled(self) -> str | None:
        """See `Store`."""
        return self._store.stalled()

    def close(self) -> None:
        """Raise ForbiddenError, because requests may not call this method."""
        raise ForbiddenError("only the server itself closes the store")

    @contextmanager
    def _batch(self, batch_id: str | None) -> Iterator[str | None]:
        """Yield the ID under which the store keeps this project's batch. It differs from all IDs of other projects.

        Batch IDs come from headers, which contain no line breaks, so each pair of ID and project yields a unique
        string.
        """
        try:
            yield None if batch_id is None else f"{batch_id}\n{self._project}"
        except BatchConflictError:
            raise BatchConflictError(batch_id or "") from None

    def _is_visible(self, ref: RunRef) -> bool:
        return ref.project in (None, self._project)

    def _scoped(self, ref: RunRef) -> RunRef:
        if not self._is_visible(ref):
            # The message is the same as for a run that does not exist, so that it does not reveal runs of other
            # projects.
            raise NotFoundError(f"there is no run {ref.run_id!r} in project {ref.project!r}")
        return RunRef(ref.run_id, self._project)

    def _check(self, attributes: Mapping[str, Attribute]) -> None:
        source = identify(attributes)
        if not isinstance(source, str) and source.project != self._project:
            raise ForbiddenError(
                f"the token is for project {self._project!r}, but the request contains data of project {source.project!r}; "
                "nothing was stored"
            )
