"""Attempts of runs: what later ones hide, and the assignment of numbers, for runs whose machines share only this server.

Requests write nothing. The number is derived from the stored processes, so processes that request a number at the same
time get the same one (see `tensormeter.conventions.attempt_number`).
"""

import time
from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tensormeter.conventions.attempt_number import DOUBTFUL, KnownMember, Member, choose_attempt
from tensormeter.conventions.semconv import PROCESS_KIND
from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.otlp.content_codings import ACCEPT_ENCODING
from tensormeter.server.api.params import read_parameters, run_ref
from tensormeter.server.api.request_schemas import AttemptParameters, AttemptsParameters
from tensormeter.server.api.responses import encode, json_response
from tensormeter.server.api.schemas import Attempt, Attempts, HiddenPart
from tensormeter.server.api.threads import ApiThreads
from tensormeter.server.auth.project_scope import Stores
from tensormeter.server.limits.cpu_budget import CpuBudget
from tensormeter.server.query.names.selection import NameSelection, page_of, select_names
from tensormeter.server.query.points.hidden import hidden_parts
from tensormeter.server.store import NotFoundError, ProcessSummary, RunRef, Store

__all__ = ["AttemptsApi"]


_METRICS: Final = 1000
"""Number of metrics that one response covers."""


class AttemptsApi:
    """Handlers of `/attempt` and `/attempts`."""

    def __init__(self, stores: Stores, threads: ApiThreads) -> None:
        self._stores = stores
        self._threads = threads

    def routes(self) -> list[Route]:
        """Return the handlers' routes."""
        return [
            Route("/api/v1/runs/{run_id}/attempt", self.attempt, methods=["GET"]),
            Route("/api/v1/runs/{run_id}/attempts", self.attempts, methods=["GET"]),
        ]

    async def attempts(self, request: Request) -> Response:
        """Return the attempts of a run, and the parts of metrics that are hidden because later attempts repeat them."""
        ref, parameters = run_ref(request), read_parameters(request, AttemptsParameters)

        def work(budget: CpuBudget) -> bytes:
            store = self._stores.of(request)
            numbers = sorted({process.attempt for process in store.processes(ref)})
            if len(numbers) < 2:
                return encode(Attempts(numbers, [], None))
            table = store.names(ref)
            selection = NameSelection(system=parameters.system)
            page = page_of(table, select_names(table, selection, budget.check_now), _METRICS, parameters.after)
            hidden = [HiddenPart(*part) for part in hidden_parts(store, ref, page.names)]
            return encode(Attempts(numbers, hidden, page.next))

        return json_response(await self._threads.run_checked(request, work))

    async def attempt(self, request: Request) -> Response:
        """Return the attempt number of a process and the last step of earlier attempts."""
        ref, parameters = run_ref(request), read_parameters(request, AttemptParameters)
        member = Member(parameters.process, parameters.rank, parameters.world_size, parameters.launch)
        resume = parameters.resume

        def work() -> bytes:
            store = self._stores.of(request)
            known = _members(store, ref, resume=resume)
            number = parameters.number or choose_attempt(member, known.values(), resume=resume, least=parameters.least)
            return encode(Attempt(number, _last_step(store, ref, known, number)))

        response = json_response(await self._threads.run(work))
        response.headers["Accept-Encoding"] = ACCEPT_ENCODING  # agents ask before they send the first request
        return response


def _members(store: Store, ref: RunRef, *, resume: bool) -> dict[str, KnownMember]:
    """Return a run's training processes by process ID. The result is empty if the run does not exist."""
    try:
        running = store.run(ref).state == "running"
        processes = store.processes(ref)
    except NotFoundError:
        return {}
    return {
        process.process: _member(process, running=running, resume=resume)
        for process in processes
        if process.resource.get(PROCESS_KIND) != "node"
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
    """Return the highest step that processes of earlier attempts have reached; None if they have no steps."""
    earlier = {process for process, member in known.items() if member.attempt < number}
    if not earlier:
        return None
    metrics = store.metrics(ref, [STEP_METRIC])
    steps = [metric.last for metric in metrics if metric.process in earlier]
    return max((int(step) for step in steps if step is not None), default=None)
