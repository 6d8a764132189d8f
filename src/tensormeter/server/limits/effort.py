"""Limits the processor time of one request, and ends its work when the client has gone.

What a request costs is bounded by counting what it holds. This is the second bound, for whatever the first one did not foresee:
the loops of a request's work call `check`, which counts the processor time of the thread they run on. Waiting costs nothing, so
a busy machine does not make requests fail.
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

__all__ = ["MAX_SECONDS", "Effort", "Stalls", "TookTooLongError", "run_while_connected"]

_T = TypeVar("_T")

MAX_SECONDS: Final = 4.0
"""Processor time of one request; what follows the last check, such as the answer, comes on top."""

_CALLS: Final = 8
"""Calls of `check` for each look at the clock, which is a system call."""


_LOOK: Final = 1.0
"""Seconds between two looks whether the disk answers."""


def _never() -> None:
    """For work that needs no disk."""


class TookTooLongError(HTTPException):
    """413: the request has used its processor time."""


class Effort:
    """The work of one request: created on any thread, begun and checked on the one thread that does the work.

    Work may be done in several parts, one after another, each on a thread of its own; their times are added up.
    """

    def __init__(self, seconds: float = MAX_SECONDS) -> None:
        self._seconds = seconds
        self._calls = 0
        self._begun = 0.0
        self._used = 0.0
        self._cancelled = False

    def begin(self) -> None:
        """Count from now on the processor time of the calling thread.

        Raises:
            ClientDisconnect: The client has gone while the work waited for a thread.
        """
        self._begun = time.thread_time() - self._used
        self.look()

    def pause(self) -> None:
        """Stop counting, on the same thread, until the work is begun again."""
        self._used = time.thread_time() - self._begun

    def cancel(self) -> None:
        """End the work at its next check. Any thread."""
        self._cancelled = True

    def check(self) -> None:
        """Go on, or end the work. Cheap enough for inner loops.

        Raises:
            TookTooLongError: The request has used its processor time.
            ClientDisconnect: The client has gone.
        """
        self._calls += 1
        if not self._calls % _CALLS:
            self.look()

    def look(self) -> None:
        """As `check`, but always look at the clock: after something that takes long."""
        if self._cancelled:
            raise ClientDisconnect
        if time.thread_time() - self._begun > self._seconds:
            raise TookTooLongError(
                413, f"the request took more than {self._seconds:g} s of processor time; send smaller ones"
            )


class Stalls:
    """Ends requests that wait for a disk that does not answer. For one event loop."""

    def __init__(self, stalled: Callable[[], str | None] = _never) -> None:
        """Args:
        stalled: Why the disk cannot be asked now, or None; does not block.
        """
        self._stalled = stalled
        self._scopes: set[anyio.CancelScope] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, work: Callable[[], _T], limiter: anyio.CapacityLimiter) -> _T:
        """Run work on a thread, and leave it behind if the disk does not answer.

        The thread goes on when the disk answers again, so what it stores may be stored although the client was sent an error.

        Returns:
            What `work` returned.

        Raises:
            StoreUnavailableError: The disk does not answer.
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
        raise StoreUnavailableError(
            problem or self._stalled() or "the disk did not answer; send the request again later"
        )

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._scopes:
            if self._stalled() is not None:
                for scope in self._scopes:
                    scope.cancel()
            self._watch()


async def run_while_connected(
    request: Request,
    work: Callable[[Effort], _T],
    limiter: anyio.CapacityLimiter,
    effort: Effort | None = None,
    *,
    stalls: Stalls | None = None,
) -> _T:
    """Run the work of a request on a thread, and end it if the client goes away or it takes too long.

    Args:
        request: Its body has been read.
        work: The work, given the effort that its loops check.
        limiter: Threads that the work may use.
        effort: That of the request's earlier work; by default a new one.
        stalls: Ends the request if the disk does not answer; None: the work needs no disk.

    Returns:
        What `work` returned.

    Raises:
        TookTooLongError: The work took too much processor time.
        ClientDisconnect: The client went away before the work ended.
        StoreUnavailableError: The disk does not answer.
    """
    counted = Effort() if effort is None else effort
    outcome: list[_T] = []
    failure: list[Exception] = []

    def begin() -> _T:
        counted.begin()
        try:
            return work(counted)
        finally:
            counted.pause()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        counted.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        try:
            outcome.append(await (stalls or Stalls()).run(begin, limiter))
        except Exception as error:
            failure.append(error)
        tasks.cancel_scope.cancel()
    if failure:
        if isinstance(failure[0], StoreUnavailableError):
            counted.cancel()  # the work may still be on its thread
        raise failure[0]
    return outcome[0]
