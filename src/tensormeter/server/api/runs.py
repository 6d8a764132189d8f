"""Projects, runs, metrics, events and media."""

from collections.abc import Mapping
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tensormeter.server.api.params import (
    ApiThreads,
    encode,
    integer,
    json_response,
    optional_integer,
    parameters,
    read_json,
    run_ref,
    run_refs,
)
from tensormeter.server.api.schemas import (
    environment_json,
    event_json,
    join_metrics,
    metrics_json,
    process_json,
    run_json,
    trim_config,
)
from tensormeter.server.auth.project_scope import Stores
from tensormeter.server.limits.effort import Effort
from tensormeter.server.query.runs.search import RunSearch, find_runs
from tensormeter.server.store import RunChanges

__all__ = ["RunsApi"]

MAX_PAGE: Final = 1000
MAX_EVENTS: Final = 10_000
MAX_TEXT: Final = 65_536
MAX_TAGS: Final = 100
MAX_FIELDS: Final = 1000
MAX_LEVELS: Final = 100
_LONGEST_POSITION: Final = 39
"""Characters of two integers of 63 bits."""

_RUN: Final = "/api/v1/runs/{run_id}"

_MEDIA_HEADERS: Final = {
    "Cache-Control": "private, max-age=31536000, immutable",
    "Content-Disposition": "inline",
    "Content-Security-Policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


class RunsApi:
    """Handlers about runs and what belongs to them, but for points."""

    def __init__(self, stores: Stores, threads: ApiThreads) -> None:
        self._stores = stores
        self._threads = threads

    def routes(self) -> list[Route]:
        """Where the handlers go."""
        return [
            Route("/api/v1/projects", self.projects),
            Route("/api/v1/runs", self.runs),
            # One route, so that the answer to any other method names all of these.
            Route(_RUN, self.run, methods=["GET", "PATCH", "DELETE"]),
            Route(f"{_RUN}/metrics", self.metrics),
            Route("/api/v1/metrics", self.metrics_of_runs),
            Route(f"{_RUN}/events", self.events),
            Route(f"{_RUN}/media/{{digest}}", self.media),
        ]

    async def projects(self, request: Request) -> Response:
        """Every project."""
        projects = await self._threads.run(self._stores.of(request).projects)
        listed = [{"name": one.project, "runs": one.runs, "last_time": str(one.updated)} for one in projects]
        return json_response(encode({"projects": listed}))

    async def runs(self, request: Request) -> Response:
        """A page of runs."""
        query = parameters(request)
        limit = integer(query, "limit", 100, 1, MAX_PAGE)
        offset = integer(query, "offset", 0, 0, 1 << 62)
        named = None if "fields" not in query else [name for name in query["fields"].split(",") if name]
        if named is not None and (len(named) > MAX_FIELDS or any(name.count(".") > MAX_LEVELS for name in named)):
            raise HTTPException(400, f"fields: expected at most {MAX_FIELDS} names of at most {MAX_LEVELS} levels")
        metrics = None if named is None else _under("summary.", named)
        keys = None if named is None or "config" in named else _under("config.", named)

        def work(effort: Effort) -> bytes:
            damaged: list[str] = []
            project, text, sort = query.get("project") or None, query.get("filter", ""), query.get("sort", "")
            search = RunSearch(limit, offset, project, text, sort, metrics)
            runs, total = find_runs(self._stores.of(request), search, effort.look, damaged)
            listed = [run_json(run, None if keys is None else trim_config(run.config, keys)) for run in runs]
            return encode({"runs": listed, "total": total} | ({"damaged": damaged} if damaged else {}))

        return json_response(await self._threads.run_checked(request, work))

    async def run(self, request: Request) -> Response:
        """One run: read, changed or deleted."""
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
            details = {
                "processes": [process_json(process) for process in processes],
                "environment": environment_json(processes),
                "losses": self._stores.of(request).losses(ref),
            }
            return encode(run_json(run) | details)

        return json_response(await self._threads.run(work))

    async def _update(self, request: Request) -> Response:
        ref = run_ref(request)
        changes = _changes(await read_json(request))

        def work() -> bytes:
            self._stores.of(request).update(ref, changes)
            return encode(run_json(self._stores.of(request).run(ref)))

        return json_response(await self._threads.run(work))

    async def _delete(self, request: Request) -> Response:
        ref = run_ref(request)
        await self._threads.run(lambda: self._stores.of(request).delete(ref))
        return Response(status_code=204)

    async def metrics(self, request: Request) -> Response:
        """Every metric of a run."""
        ref = run_ref(request)
        found = await self._threads.run(
            lambda: encode({"metrics": metrics_json(self._stores.of(request).metrics(ref))})
        )
        return json_response(found)

    async def metrics_of_runs(self, request: Request) -> Response:
        """Every metric that any of some runs has."""
        refs = run_refs(parameters(request))

        def work(effort: Effort) -> bytes:
            store = self._stores.of(request)
            found = []
            for ref in refs:
                effort.look()
                found.append(metrics_json(store.metrics(ref)))
            return encode({"metrics": join_metrics(found)})

        return json_response(await self._threads.run_checked(request, work))

    async def events(self, request: Request) -> Response:
        """Events of a run, the newest first."""
        ref, query = run_ref(request), parameters(request)
        limit = integer(query, "limit", 1000, 1, MAX_EVENTS)
        start, stop = optional_integer(query, "start"), optional_integer(query, "stop")
        before, max_body = _position(query.get("before")), optional_integer(query, "max_body")

        def work() -> bytes:
            name, key = query.get("name") or None, query.get("key") or None
            events = self._stores.of(request).events(
                ref, name=name, key=key, start=start, stop=stop, limit=limit, before=before, max_body=max_body
            )
            following = f"{events[-1].time}-{events[-1].id}" if events.more else None
            return encode({"events": [event_json(event) for event in events], "next": following})

        return json_response(await self._threads.run(work))

    async def media(self, request: Request) -> Response:
        """An image."""
        ref = run_ref(request)
        digest = request.path_params["digest"]
        content_type, data = await self._threads.run(lambda: self._stores.of(request).media(ref, digest))
        return Response(data, headers=_MEDIA_HEADERS, media_type=content_type)


def _position(text: str | None) -> tuple[int, int] | None:
    """What `next` of an earlier answer said."""
    if text is None:
        return None
    time, _, number = text.partition("-")
    if (
        time.isascii()
        and time.isdecimal()
        and number.isascii()
        and number.isdecimal()
        and len(text) <= _LONGEST_POSITION
    ):
        position = int(time), int(number)
        if max(position) < 1 << 63:
            return position
    raise HTTPException(400, "before: expected what `next` of another answer says")


def _under(prefix: str, names: list[str]) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _changes(document: Mapping[str, Any]) -> RunChanges:
    for name in ("name", "notes", "group"):
        value = document.get(name)
        if value is not None and (not isinstance(value, str) or len(value) > MAX_TEXT):
            raise HTTPException(400, f"{name}: expected a text of at most {MAX_TEXT} characters")
    if document.get("name") == "" or len(document.get("name") or "") > 1024:
        raise HTTPException(400, "name: expected 1 to 1024 characters")
    tags = document.get("tags")
    if tags is not None and (
        not isinstance(tags, list)
        or len(tags) > MAX_TAGS
        or not all(isinstance(tag, str) and 0 < len(tag) <= 128 for tag in tags)
    ):
        raise HTTPException(400, f"tags: expected a list of at most {MAX_TAGS} texts of 1 to 128 characters")
    archived = document.get("archived")
    if archived is not None and not isinstance(archived, bool):
        raise HTTPException(400, f"archived: expected true or false, got {str(archived)[:40]!r}")
    return RunChanges(
        name=document.get("name"),
        tags=None if tags is None else list(dict.fromkeys(tags)),
        notes=document.get("notes"),
        group=document.get("group"),
        archived=archived,
    )
