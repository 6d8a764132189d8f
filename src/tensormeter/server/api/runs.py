"""Handlers for projects, runs, metrics, events and media."""

from typing import Final

from msgspec import UNSET
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tensormeter.server.api.documents import (
    event_document,
    join_metrics,
    metric_documents,
    run_details,
    run_document,
    trim_config,
)
from tensormeter.server.api.params import read_body, read_parameters, run_ref, run_refs
from tensormeter.server.api.request_schemas import EventsParameters, RunChanges, RunListParameters, RunsParameters
from tensormeter.server.api.responses import encode, json_response
from tensormeter.server.api.schemas import Events, Metrics, Project, Projects, Runs
from tensormeter.server.api.threads import ApiThreads
from tensormeter.server.auth.project_scope import Stores
from tensormeter.server.limits.cpu_budget import CpuBudget
from tensormeter.server.query.runs.search import RunSearch, find_runs
from tensormeter.server.store import RunChanges as StoreChanges
from tensormeter.server.store.models.event_query import EventQuery

__all__ = ["RunsApi"]

MAX_FIELDS: Final = 1000
MAX_LEVELS: Final = 100
_MAX_POSITION: Final = 39
"""Maximum length of an event position in characters: two 63-bit integers and a separator."""

_RUN: Final = "/api/v1/runs/{run_id}"

_MEDIA_HEADERS: Final = {
    "Cache-Control": "private, max-age=31536000, immutable",
    "Content-Disposition": "inline",
    "Content-Security-Policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


class RunsApi:
    """Handlers for projects, runs, metrics, events and media."""

    def __init__(self, stores: Stores, threads: ApiThreads) -> None:
        self._stores = stores
        self._threads = threads

    def routes(self) -> list[Route]:
        """Return the handlers' routes."""
        return [
            Route("/api/v1/projects", self.projects),
            Route("/api/v1/runs", self.runs),
            # A single route, so that the response to any other method (405) lists all three methods.
            Route(_RUN, self.run, methods=["GET", "PATCH", "DELETE"]),
            Route(f"{_RUN}/metrics", self.metrics),
            Route("/api/v1/metrics", self.metrics_of_runs),
            Route(f"{_RUN}/events", self.events),
            Route(f"{_RUN}/media/{{digest}}", self.media),
        ]

    async def projects(self, request: Request) -> Response:
        """Return all projects."""
        projects = await self._threads.run(self._stores.of(request).projects)
        documents = [Project(project.project, project.runs, str(project.updated)) for project in projects]
        return json_response(encode(Projects(documents)))

    async def runs(self, request: Request) -> Response:
        """Return a page of runs."""
        parameters = read_parameters(request, RunsParameters)
        fields = None if parameters.fields is None else [name for name in parameters.fields.split(",") if name]
        if fields is not None and (len(fields) > MAX_FIELDS or any(name.count(".") > MAX_LEVELS for name in fields)):
            raise HTTPException(400, f"fields: expected at most {MAX_FIELDS} names of at most {MAX_LEVELS} levels")
        metrics = None if fields is None else _under("summary.", fields)
        keys = None if fields is None or "config" in fields else _under("config.", fields)

        def work(budget: CpuBudget) -> bytes:
            damaged: list[str] = []
            search = RunSearch(
                parameters.limit,
                parameters.offset,
                parameters.project or None,
                parameters.filter,
                parameters.sort,
                metrics,
            )
            runs, total = find_runs(self._stores.of(request), search, budget.check_now, damaged)
            documents = [run_document(run, None if keys is None else trim_config(run.config, keys)) for run in runs]
            return encode(Runs(runs=documents, total=total, damaged=damaged or UNSET))

        return json_response(await self._threads.run_checked(request, work))

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

        def work() -> bytes:
            run = self._stores.of(request).run(ref)
            processes = self._stores.of(request).processes(ref)
            return encode(run_details(run, processes, self._stores.of(request).losses(ref)))

        return json_response(await self._threads.run(work))

    async def _update(self, request: Request) -> Response:
        ref = run_ref(request)
        body = await read_body(request, RunChanges)
        changes = StoreChanges(
            name=body.name,
            tags=None if body.tags is None else list(dict.fromkeys(body.tags)),
            notes=body.notes,
            group=body.group,
            archived=body.archived,
        )

        def work() -> bytes:
            self._stores.of(request).update(ref, changes)
            return encode(run_document(self._stores.of(request).run(ref)))

        return json_response(await self._threads.run(work))

    async def _delete(self, request: Request) -> Response:
        ref = run_ref(request)
        await self._threads.run(lambda: self._stores.of(request).delete(ref))
        return Response(status_code=204)

    async def metrics(self, request: Request) -> Response:
        """Return all metrics of a run."""
        ref = run_ref(request)

        def work() -> bytes:
            return encode(Metrics(metric_documents(self._stores.of(request).metrics(ref))))

        return json_response(await self._threads.run(work))

    async def metrics_of_runs(self, request: Request) -> Response:
        """Return all metrics of several runs."""
        refs = run_refs(read_parameters(request, RunListParameters))

        def work(budget: CpuBudget) -> bytes:
            store = self._stores.of(request)
            metrics = []
            for ref in refs:
                budget.check_now()
                metrics.append(metric_documents(store.metrics(ref)))
            return encode(Metrics(join_metrics(metrics)))

        return json_response(await self._threads.run_checked(request, work))

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
        """Return an image."""
        ref = run_ref(request)
        digest = request.path_params["digest"]
        content_type, data = await self._threads.run(lambda: self._stores.of(request).media(ref, digest))
        return Response(data, headers=_MEDIA_HEADERS, media_type=content_type)


def _position(text: str | None) -> tuple[int, int] | None:
    """Parse the value of `next` from an earlier response. The value contains the time and number of an event."""
    if text is None:
        return None
    time, _, number = text.partition("-")
    if time.isascii() and time.isdecimal() and number.isascii() and number.isdecimal() and len(text) <= _MAX_POSITION:
        position = int(time), int(number)
        if max(position) < 1 << 63:
            return position
    raise HTTPException(400, f"before: expected the value of `next` of another response, got {text[:40]!r}")


def _under(prefix: str, names: list[str]) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
