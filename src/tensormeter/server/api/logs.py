"""Handler for log lines."""

from collections.abc import Collection
from typing import Any

from msgspec import UNSET
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tensormeter.conventions.semconv import RANK
from tensormeter.server.api import schemas
from tensormeter.server.api.params import parse_position, read_parameters, run_ref
from tensormeter.server.api.request_schemas import LogsParameters
from tensormeter.server.api.responses import encode, json_response
from tensormeter.server.api.threads import ApiThreads
from tensormeter.server.auth.project_scope import Stores
from tensormeter.server.limits.cpu_budget import CpuBudget
from tensormeter.server.store import RunRef, Store
from tensormeter.server.store.models.log_lines import LogLine, LogPage, LogQuery, Position

__all__ = ["LogsApi"]


class LogsApi:
    """Handler for log lines."""

    def __init__(self, stores: Stores, threads: ApiThreads) -> None:
        self._stores = stores
        self._threads = threads

    def routes(self) -> list[Route]:
        """Return the handler's route."""
        return [Route("/api/v1/runs/{run_id}/logs", self.logs)]

    async def logs(self, request: Request) -> Response:
        """Return a page of a run's log lines."""
        ref, parameters = run_ref(request), read_parameters(request, LogsParameters)
        before, after = _position("before", parameters.before), _position("after", parameters.after)

        def work(budget: CpuBudget) -> bytes:
            store = self._stores.of(request)
            query = LogQuery(
                before=before,
                after=after,
                since=parameters.since,
                limit=parameters.limit,
                max_text=parameters.max_text,
                start=parameters.start,
                stop=parameters.stop,
                processes=_processes(store, ref, parameters),
                stream=parameters.stream,
                severity=parameters.severity,
                search=parameters.search,
            )
            return encode(_document(store.logs(ref, query, budget.check_now)))

        return json_response(await self._threads.run_checked(request, work))


def _processes(store: Store, ref: RunRef, parameters: LogsParameters) -> Collection[str] | None:
    """Return the processes to read; None for all."""
    process = parameters.process or None
    if parameters.rank is None:
        return None if process is None else [process]
    ranked = [each.process for each in store.processes(ref) if each.resource.get(RANK) == parameters.rank]
    return [each for each in ranked if process in (None, each)]


def _document(page: LogPage) -> schemas.Logs:
    usage = page.usage
    return schemas.Logs(
        lines=[_line(line) for line in page.lines],
        older=_text(page.older),
        newer=_text(page.newer),
        cursor=page.cursor,
        usage=schemas.LogUsage(usage.lines, usage.size, usage.evicted),
        stopped=page.stopped or UNSET,
        more=page.more or UNSET,
        reset=page.reset or UNSET,
        damaged=len(page.rows) - len(page.lines) or UNSET,
    )


def _line(line: LogLine) -> schemas.LogLine:
    record = line.record
    observed = record.get("observed_time")
    known: dict[str, Any] = {name: record[name] for name in schemas.LogLine.RECORD if name in record}
    return schemas.LogLine(
        id=f"{line.time}-{line.id}",
        time=str(line.time),
        process=line.process,
        stream=line.stream,
        severity=line.severity,
        text=line.text,
        size=line.size if line.size > len(line.text) else UNSET,
        attributes=line.attributes or UNSET,
        observed_time=UNSET if observed is None else str(observed),
        **known,
    )


def _text(position: Position | None) -> str | None:
    return None if position is None else f"{position[0]}-{position[1]}"


def _position(name: str, text: str | None) -> Position | None:
    if text is None:
        return None
    position = parse_position(text)
    if position is None:
        raise HTTPException(400, f"{name}: expected `older`, `newer` or the `id` of a line, got {text[:40]!r}")
    return position
