"""Numbers for processes of runs that are attempted again, perhaps on machines that share nothing but this server.

Nothing is written: the answer follows from what has arrived, and processes that ask at once get the same (`tensormeter.attempt`).
"""

import time
from collections.abc import Mapping
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tensormeter.conventions.attempt_number import DOUBTFUL, MAX_ATTEMPT, KnownMember, Member, choose_attempt
from tensormeter.conventions.semconv import PROCESS_KIND
from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.server.api.params import (
    ApiThreads,
    encode,
    integer,
    json_response,
    optional_integer,
    parameters,
    run_ref,
)
from tensormeter.server.auth.project_scope import Stores
from tensormeter.server.store import NotFoundError, ProcessSummary, RunRef, Store

__all__ = ["AttemptsApi"]

_LONGEST: Final = 1024


class AttemptsApi:
    """The handler that gives numbers."""

    def __init__(self, stores: Stores, threads: ApiThreads) -> None:
        self._stores = stores
        self._threads = threads

    def routes(self) -> list[Route]:
        """Where the handler goes."""
        return [Route("/api/v1/runs/{run_id}/attempt", self.attempt, methods=["GET"])]

    async def attempt(self, request: Request) -> Response:
        """The number of the attempt that a process belongs to, and the last step of the attempts before."""
        ref = run_ref(request)
        query = parameters(request)
        member = Member(
            _text(query, "process"), _count(query, "rank"), _count(query, "world_size"), _text(query, "launch")
        )
        least = integer(query, "least", 1, 1, MAX_ATTEMPT)
        given = None if optional_integer(query, "number") is None else integer(query, "number", 1, 1, MAX_ATTEMPT)
        resume = query.get("resume", "false")
        if resume not in ("true", "false"):
            raise HTTPException(400, f"resume: expected true or false, got {resume[:40]!r}")

        def work() -> bytes:
            store = self._stores.of(request)
            known = _members(store, ref, resume=resume == "true")
            number = given or choose_attempt(member, known.values(), resume=resume == "true", least=least)
            return encode({"attempt": number, "last_step": _last_step(store, ref, known, number)})

        return json_response(await self._threads.run(work))


def _members(store: Store, ref: RunRef, *, resume: bool) -> dict[str, KnownMember]:
    """The processes of a run that train, by id; none if there is no such run."""
    try:
        running = store.run(ref).state == "running"
        processes = store.processes(ref)
    except NotFoundError:
        return {}
    return {
        one.process: _member(one, running=running, resume=resume)
        for one in processes
        if one.resource.get(PROCESS_KIND) != "node"
    }


def _member(process: ProcessSummary, *, running: bool, resume: bool) -> KnownMember:
    rank, world_size, launch = (
        process.resource.get(f"tensormeter.{name}") for name in ("rank", "world_size", "launch.id")
    )
    age = float("inf") if process.started is None else max(0.0, time.time() - process.started / 1e9)
    return KnownMember(
        process.process,
        rank if isinstance(rank, int) else None,
        world_size if isinstance(world_size, int) else None,
        launch if isinstance(launch, str) else "",
        process.attempt,
        running and process.state in ("running", None) and (not resume or age < DOUBTFUL),
        age,
    )


def _last_step(store: Store, ref: RunRef, known: Mapping[str, KnownMember], number: int) -> int | None:
    """The highest of the last steps of processes of earlier attempts."""
    earlier = {process for process, one in known.items() if one.attempt < number}
    if not earlier:
        return None
    steps = [one.last for one in store.metrics(ref) if one.metric == STEP_METRIC and one.process in earlier]
    return max((int(step) for step in steps if step is not None), default=None)


def _text(query: Mapping[str, str], name: str) -> str:
    text = query.get(name, "")
    if len(text) > _LONGEST:
        raise HTTPException(400, f"{name}: expected a text of at most {_LONGEST} characters")
    return text


def _count(query: Mapping[str, str], name: str) -> int | None:
    return None if optional_integer(query, name) is None else integer(query, name, 0, 0, MAX_ATTEMPT)
