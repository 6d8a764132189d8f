"""Worker threads of the API."""

from collections.abc import Callable
from typing import Final, TypeVar

import anyio
from starlette.requests import Request

from tensormeter.server.limits.cpu_budget import CpuBudget, StallWatchdog, run_while_connected

__all__ = ["ApiThreads"]

_THREADS: Final = 4

_T = TypeVar("_T")


class ApiThreads:
    """A small pool of threads for queries, separate from the threads for ingest."""

    def __init__(self, stalled: Callable[[], str | None]) -> None:
        """Args:
        stalled: Function that returns why the store is currently unresponsive, or None. It must not block.
        """
        self._limiter = anyio.CapacityLimiter(_THREADS)
        self._watchdog = StallWatchdog(stalled)

    async def run(self, work: Callable[[], _T]) -> _T:
        """Run `work` on a thread, and return its result. Raises the errors of `work` and of `StallWatchdog.run`."""
        return await self._watchdog.run(work, self._limiter)

    async def run_checked(
        self, request: Request, work: Callable[[CpuBudget], _T], budget: CpuBudget | None = None
    ) -> _T:
        """Run `work` like `run`, and stop it if it takes too long or the client disconnects.

        See `run_while_connected` for the arguments and errors.
        """
        return await run_while_connected(request, work, self._limiter, budget, watchdog=self._watchdog)
