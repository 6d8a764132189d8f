"""One project of a store, for requests that may see no other.

Handlers reach a store only through `Stores`, so that none can forget whose request it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request

from tensormeter.errors import StoreError
from tensormeter.otlp.batch import Attribute, Batch, Event
from tensormeter.otlp.check import Check, no_check
from tensormeter.server.auth.authenticator import Access
from tensormeter.server.store import (
    BatchConflictError,
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
    Store,
    StoredEvent,
    Thinned,
)
from tensormeter.server.store.models.durability import Syncer
from tensormeter.server.store.rules.resource_identity import identify

__all__ = ["ForbiddenError", "ProjectStore", "Stores"]


class ForbiddenError(StoreError):
    """The request's token does not allow this."""


class Stores:
    """Gives each request the store as it may see it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def stalled(self) -> str | None:
        """Why the store would not answer now, or None. Does not block."""
        return self._store.stalled()

    def of(self, request: Request) -> Store:
        """The whole store, or the project that the request's token is for."""
        access: Access = request.state.access
        return self._store if access.project is None else ProjectStore(self._store, access.project)


class ProjectStore:
    """A `Store` in which there is nothing but one project. What is of another is not found; what comes for another is refused.

    Its batch ids are its own: the same id of another project, or of a sender for all projects, names another batch.
    """

    def __init__(self, store: Store, project: str) -> None:
        """Of `store`, which somebody else opens and closes."""
        self._store = store
        self._project = project

    @property
    def syncer(self) -> Syncer | None:
        """See `Store`."""
        return self._store.syncer

    def append_metrics(
        self,
        batches: Sequence[Batch],
        *,
        payload: bytes,
        batch_id: str | None = None,
        check: Check = no_check,
    ) -> Receipt:
        """See `Store`. Raises ForbiddenError, and stores nothing, if anything is of another project."""
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
        """See `Store`. Raises ForbiddenError, and stores nothing, if anything is of another project."""
        for attributes, _ in resources:
            check()
            self._check(attributes)
        with self._batch(batch_id) as name:
            return self._store.append_events(resources, payload=payload, batch_id=name, check=check)

    def projects(self) -> list[ProjectSummary]:
        """See `Store`."""
        return [one for one in self._store.projects() if one.project == self._project]

    def table(self, project: str | None, fields: Sequence[str], check: Check = no_check) -> RunTable:
        """See `Store`."""
        if project not in (None, self._project):
            return RunTable([], {name: [] for name in fields})
        return self._store.table(self._project, fields, check)

    def runs(
        self, runs: Sequence[int], metrics: Sequence[str] | None = None, damaged: list[str] | None = None
    ) -> list[RunSummary]:
        """See `Store`."""
        return [run for run in self._store.runs(runs, metrics, damaged) if run.project == self._project]

    def run(self, ref: RunRef) -> RunSummary:
        """See `Store`."""
        return self._store.run(self._ours(ref))

    def processes(self, ref: RunRef) -> list[ProcessSummary]:
        """See `Store`."""
        return self._store.processes(self._ours(ref))

    def losses(self, ref: RunRef) -> Mapping[str, int]:
        """See `Store`."""
        return self._store.losses(self._ours(ref))

    def update(self, ref: RunRef, changes: RunChanges) -> None:
        """See `Store`."""
        self._store.update(self._ours(ref), changes)

    def delete(self, ref: RunRef) -> None:
        """See `Store`."""
        self._store.delete(self._ours(ref))

    def metrics(self, ref: RunRef) -> list[MetricSummary]:
        """See `Store`."""
        return self._store.metrics(self._ours(ref))

    def read(self, ref: RunRef, selection: Selection) -> Reading:
        """See `Store`."""
        return self._store.read(self._ours(ref), selection)

    def thin(self, ref: RunRef, selection: Selection, window: PointRange, blocks: int) -> list[Thinned] | None:
        """See `Store`."""
        return self._store.thin(self._ours(ref), selection, window, blocks)

    def events(self, ref: RunRef, **options: Any) -> EventPage:
        """See `Store`."""
        return self._store.events(self._ours(ref), **options)

    def media(self, ref: RunRef, digest: str) -> tuple[str, bytes]:
        """See `Store`."""
        return self._store.media(self._ours(ref), digest)

    def changes(self, after: str | None, runs: Sequence[RunRef] | None = None) -> Changes:
        """See `Store`."""
        ours = None if runs is None else [RunRef(ref.run_id, self._project) for ref in runs if self._may(ref)]
        found = self._store.changes(after, ours)
        return Changes(found.cursor, [change for change in found.changes if change.run.project == self._project])

    def raise_alert(self, run: RunRef, event: Event) -> None:
        """Not for requests."""
        raise ForbiddenError("only the server itself raises alerts")

    def mark_stalled(self, run: RunRef, *, stalled: bool) -> None:
        """Not for requests."""
        raise ForbiddenError("only the server itself says that a run stalls")

    def alerts(self, after: int, limit: int) -> list[tuple[RunRef, StoredEvent]]:
        """Not for requests: they ask for the events of a run."""
        raise ForbiddenError("only the server itself reads the alerts of all runs")

    def mark(self, name: str, value: int | None = None) -> int:
        """Not for requests."""
        raise ForbiddenError("only the server itself has marks")

    def problem(self) -> str | None:
        """See `Store`."""
        return self._store.problem()

    def stalled(self) -> str | None:
        """See `Store`."""
        return self._store.stalled()

    def close(self) -> None:
        """Not for requests."""
        raise ForbiddenError("whoever opened the store closes it")

    @contextmanager
    def _batch(self, batch_id: str | None) -> Iterator[str | None]:
        """Under which id a batch of this project is kept, so that nobody else's can be taken for it.

        Ids come from headers, where no line ends, so no two projects and ids have the same text.
        """
        try:
            yield None if batch_id is None else f"{batch_id}\n{self._project}"
        except BatchConflictError:
            raise BatchConflictError(batch_id or "") from None

    def _may(self, ref: RunRef) -> bool:
        return ref.project in (None, self._project)

    def _ours(self, ref: RunRef) -> RunRef:
        if not self._may(ref):
            # As for a run that does not exist: not even that it does is told.
            raise NotFoundError(f"there is no run {ref.run_id!r} in project {ref.project!r}")
        return RunRef(ref.run_id, self._project)

    def _check(self, attributes: Mapping[str, Attribute]) -> None:
        source = identify(attributes)
        if not isinstance(source, str) and source.project != self._project:
            raise ForbiddenError(
                f"the token is for project {self._project!r}, and the request has data of {source.project!r}; "
                "nothing of it was stored"
            )
