"""A limit on a request's processor time, and cancellation when its client disconnects.

Other limits apply to the number of elements in a request. This module limits all remaining costs: loops that work on a
request regularly call `check`, which measures the processor time of their thread. Waiting does not count, so requests
do not fail merely because the machine is busy.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final, TypeVar

import anyio
import anyio.to_thread
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from tensormeter.server.store.models.errors import StoreUnavailableError

__all__ = ["MAX_SECONDS", "CpuBudget", "StallWatchdog", "TookTooLongError", "run_while_connected"]

_T = TypeVar("_T")

MAX_SECONDS: Final = 4.0
"""Maximum processor time of a request in seconds.

Work after the last check, such as sending the response, does not count.
"""

_CALLS: Final = 8
"""Number of `check` calls per reading of the clock, which is a system call."""


_POLL_INTERVAL: Final = 1.0
"""Interval, in seconds, between the watchdog's checks whether the disk responds."""


def _never() -> None:
    """Return None, for work that does not need the disk."""


class TookTooLongError(HTTPException):
    """The request has used up its processor time (status 413)."""


class CpuBudget:
    """Processor time of a request. Any thread may create it; the thread that does the work calls `begin` and `check`.

    If parts of the work run on different threads, one after the other, their times are added up.
    """

    def __init__(self, seconds: float = MAX_SECONDS) -> None:
        self._seconds = seconds
        self._calls = 0
        self._started_at = 0.0
        self._used = 0.0
        self._cancelled = False

    def begin(self) -> None:
        """Start counting the processor time of the calling thread.

        Raises:
            TookTooLongError: Earlier parts of the work have used up the request's processor time.
            ClientDisconnect: The client disconnected while the work was waiting for a thread.
        """
        self._started_at = time.thread_time() - self._used
        self.check_now()

    def pause(self) -> None:
        """Stop counting until `begin` is called again. Call it on the thread that called `begin`."""
        self._used = time.thread_time() - self._started_at

    def cancel(self) -> None:
        """Stop the work at its next check. Can be called on any thread."""
        self._cancelled = True

    def check(self) -> None:
        """Raise an error if the work must stop. This is cheap enough for inner loops.

        Raises:
            TookTooLongError: The request has used up its processor time.
            ClientDisconnect: The client has disconnected.
        """
        self._calls += 1
        if not self._calls % _CALLS:
            self.check_now()

    def check_now(self) -> None:
        """Check the clock immediately, for example after a slow step. Raises the same errors as `check`."""
        if self._cancelled:
            raise ClientDisconnect
        if time.thread_time() - self._started_at > self._seconds:
            raise TookTooLongError(
                413, f"the request needs more than {self._seconds:g} s of CPU time; send smaller requests"
            )


class StallWatchdog:
    """Watchdog that ends requests whose work waits for an unresponsive disk. For one event loop."""

    def __init__(self, stalled: Callable[[], str | None] = _never) -> None:
        """Args:
        stalled: Function that returns why the disk is unresponsive, or None. It must not block.
        """
        self._stalled = stalled
        self._scopes: set[anyio.CancelScope] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, work: Callable[[], _T], limiter: anyio.CapacityLimiter) -> _T:
        """Run `work` on a thread, and abandon the thread if the disk is unresponsive.

        The abandoned thread continues when the disk responds again. Data may therefore be stored although the client
        received an error.

        Returns:
            Result of `work`.

        Raises:
            StoreUnavailableError: The disk is unresponsive.
        """
        problem = self._stalled()
        if problem is None:
            with anyio.CancelScope() as scope:
                self._scopes.add(scope)
                self._watch()
                try:
                    return await anyio.to_thread.run_sync(work, limiter=limiter, abandon_on_cancel=True)
                finally:
                    self._scopes.discard(scope)
        raise StoreUnavailableError(problem or self._stalled() or "the disk did not respond; retry the request later")

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_POLL_INTERVAL, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._scopes:
            if self._stalled() is not None:
                for scope in self._scopes:
                    scope.cancel()
            self._watch()


async def run_while_connected(
    request: Request,
    work: Callable[[CpuBudget], _T],
    limiter: anyio.CapacityLimiter,
    budget: CpuBudget | None = None,
    *,
    watchdog: StallWatchdog | None = None,
) -> _T:
    """Run a request's work on a thread. End the work if the client disconnects or it takes too much processor time.

    Args:
        request: Request whose body has been read.
        work: Function that does the work. Its loops check the budget that it receives.
        limiter: Limit on the number of threads that work on requests.
        budget: Budget of the request's earlier work. Default: a new budget.
        watchdog: Watchdog that ends the request if the disk is unresponsive; None if the work does not need the disk.

    Returns:
        Result of `work`.

    Raises:
        TookTooLongError: The work took too much processor time.
        ClientDisconnect: The client disconnected before the work ended.
        StoreUnavailableError: The disk is unresponsive.
    """
    total = CpuBudget() if budget is None else budget
    results: list[_T] = []
    failure: list[Exception] = []

    def begin() -> _T:
        total.begin()
        try:
            return work(total)
        finally:
            total.pause()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        total.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        try:
            results.append(await (watchdog or StallWatchdog()).run(begin, limiter))
        except Exception as error:
            failure.append(error)
        tasks.cancel_scope.cancel()
    if failure:
        if isinstance(failure[0], StoreUnavailableError):
            total.cancel()  # the thread may still be working
        raise failure[0]
    return results[0]
