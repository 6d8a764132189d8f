"""Handlers for projects, runs, events and media."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tensormeter.server.api import schemas
from tensormeter.server.api.documents import event_document, run_details, run_document
from tensormeter.server.api.params import parse_position, read_body, read_parameters, run_ref
from tensormeter.server.api.request_schemas import EventsParameters, RunChanges, RunDetailsParameters, RunsParameters
from tensormeter.server.api.responses import encode, json_response
from tensormeter.server.api.run_pieces import RunFields, list_pieces, list_runs, run_pieces
from tensormeter.server.api.schemas import Events, Project, Projects
from tensormeter.server.api.threads import ApiThreads
from tensormeter.server.auth.project_scope import Stores
from tensormeter.server.limits.cpu_budget import CpuBudget
from tensormeter.server.limits.responses import BufferedResponse
from tensormeter.server.query.runs.columns import RunColumns
from tensormeter.server.query.runs.search import RunSearch, find_runs
from tensormeter.server.store import RunChanges as StoreChanges
from tensormeter.server.store import RunRef, RunSummary, RunTable, Store
from tensormeter.server.store.models.event_query import EventQuery

__all__ = ["RunsApi"]

_STREAMED: Final = 4 << 20
"""Size, in bytes, of the data in memory while a response with summaries is sent."""

_MANY: Final = 5_000
"""Number of metrics above which a run is sent in pieces. Errors while it is sent close the connection."""

_RUN: Final = "/api/v1/runs/{run_id}"

_MEDIA_HEADERS: Final = {
    "Cache-Control": "private, max-age=31536000, immutable",
    "Content-Security-Policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


class RunsApi:
    """Handlers for projects, runs, events and media."""

    def __init__(self, stores: Stores, threads: ApiThreads) -> None:
        self._stores = stores
        self._threads = threads
        self._columns = RunColumns()

    def routes(self) -> list[Route]:
        """Return the handlers' routes."""
        return [
            Route("/api/v1/projects", self.projects),
            Route("/api/v1/runs", self.runs),
            # A single route, so that the response to any other method (405) lists all three methods.
            Route(_RUN, self.run, methods=["GET", "PATCH", "DELETE"]),
            Route(f"{_RUN}/events", self.events),
            Route(f"{_RUN}/media/{{digest}}", self.media),
        ]

    async def projects(self, request: Request) -> Response:
        """Return all projects."""
        scope = request.state.access.project

        def work(budget: CpuBudget) -> bytes:
            fields = ("project", "updated")
            table = self._columns.table(self._stores.of(request), scope, None, fields, budget.check_now)
            counts = Counter(table.columns["project"])
            updated: dict[str, int] = {}
            for project, time in zip(table.columns["project"], table.columns["updated"], strict=True):
                updated[project] = max(updated.get(project, 0), time)
            return encode(Projects([Project(name, counts[name], str(updated[name])) for name in sorted(counts)]))

        return json_response(await self._threads.run_checked(request, work))

    async def runs(self, request: Request) -> Response:
        """Return a page of runs."""
        parameters = read_parameters(request, RunsParameters)
        fields = RunFields.parse("config" if parameters.fields is None else parameters.fields)
        search = RunSearch(parameters.limit, parameters.offset, parameters.filter, parameters.sort)
        project, scope = parameters.project or None, request.state.access.project

        def work(budget: CpuBudget) -> Response:
            store = self._stores.of(request)

            def load(names: Sequence[str]) -> RunTable:
                return self._columns.table(store, scope, project, names, budget.check_now)

            numbers, total = find_runs(load, search, budget.check_now)
            if fields.metrics is None:
                pieces = list_pieces(store, numbers, fields, total, search.offset)
                return BufferedResponse(pieces, _STREAMED, "application/json")
            return json_response(list_runs(store, numbers, fields, total, search.offset))

        return await self._threads.run_checked(request, work)

    async def run(self, request: Request) -> Response:
        """Read, change or delete a run."""
        match request.method:
            case "PATCH":
                return await self._update(request)
            case "DELETE":
                return await self._delete(request)
            case _:
                return await self._show(request)

    async def _show(self, request: Request) -> Response:
        ref = run_ref(request)
        parameters = read_parameters(request, RunDetailsParameters)
        fields = RunFields.parse("config,summary" if parameters.fields is None else parameters.fields)

        def work() -> Response:
            store = self._stores.of(request)
            run = store.run(ref, fields.metrics or ())
            details = run_details(run, store.processes(ref), store.losses(ref), fields.config_of(run))
            return self._document(store, run, details, fields)

        return await self._threads.run(work)

    def _document(
        self, store: Store, run: RunSummary, document: schemas.Run | schemas.RunDetails, fields: RunFields
    ) -> Response:
        """Return a run's document with the requested summaries, in pieces if there are many."""
        if fields.metrics is not None:
            document.summary = {**document.summary, **fields.results_of(run)}
            return json_response(encode(document))
        ref = RunRef(run.run_id, run.project)
        pieces = run_pieces(store, ref, document, run.results)
        if len(store.names(ref)) > _MANY:
            return BufferedResponse(pieces, _STREAMED, "application/json")
        return json_response(b"".join(pieces))

    async def _update(self, request: Request) -> Response:
        ref, parameters = run_ref(request), read_parameters(request, RunDetailsParameters)
        fields = RunFields.parse("config,summary" if parameters.fields is None else parameters.fields)
        body = await read_body(request, RunChanges)
        changes = StoreChanges(
            name=body.name,
            tags=None if body.tags is None else list(dict.fromkeys(body.tags)),
            notes=body.notes,
            group=body.group,
            job_type=body.job_type,
            archived=body.archived,
        )

        def work() -> Response:
            store = self._stores.of(request)
            store.update(ref, changes)
            run = store.run(ref, fields.metrics or ())
            return self._document(store, run, run_document(run, fields.config_of(run)), fields)

        return await self._threads.run(work)

    async def _delete(self, request: Request) -> Response:
        ref = run_ref(request)
        await self._threads.run(lambda: self._stores.of(request).delete(ref))
        return Response(status_code=204)

    async def events(self, request: Request) -> Response:
        """Return events of a run, newest first."""
        ref, parameters = run_ref(request), read_parameters(request, EventsParameters)
        query = EventQuery(
            name=parameters.name or None,
            key=parameters.key or None,
            start=parameters.start,
            stop=parameters.stop,
            limit=parameters.limit,
            before=_position(parameters.before),
            max_body=parameters.max_body,
        )

        def work() -> bytes:
            events = self._stores.of(request).events(ref, query)
            following = f"{events[-1].time}-{events[-1].id}" if events.more else None
            return encode(Events([event_document(event) for event in events], following))

        return json_response(await self._threads.run(work))

    async def media(self, request: Request) -> Response:
        """Return an image, a video or an audio clip."""
        ref = run_ref(request)
        digest = request.path_params["digest"]
        content_type, data = await self._threads.run(lambda: self._stores.of(request).media(ref, digest))
        # The page fetches media and shows them from memory. Opened directly, only images are displayed.
        disposition = "inline" if content_type.startswith("image/") else "attachment"
        headers = _MEDIA_HEADERS | {"Content-Disposition": disposition}
        return Response(data, headers=headers, media_type=content_type)


def _position(text: str | None) -> tuple[int, int] | None:
    """Parse the value of `next` from an earlier response. The value contains the time and number of an event."""
    if text is None:
        return None
    position = parse_position(text)
    if position is not None:
        return position
    raise HTTPException(400, f"before: expected the value of `next` of another response, got {text[:40]!r}")
