"""Looking something up on the disk for requests, without making the event loop wait for the disk."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import anyio
import anyio.to_thread

from tensormeter.server.store.errors import StoreUnavailableError

__all__ = ["Lookup"]

_PATIENCE: Final = 5.0
"""Seconds that a request waits for the disk."""


class Lookup:
    """One look for all requests that came while the last one was under way, on one thread. For one event loop."""

    def __init__(self, look: Callable[[], object]) -> None:
        """Args:
        look: Blocks for the disk. It keeps what it finds, and what it raises as a StoreError, for whoever asks.
        """
        self._look = look
        self._next: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def fresh(self) -> None:
        """Wait for a look that begins after this call, so that changes take effect at once.

        Raises:
            StoreUnavailableError: The disk does not answer.
        """
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        wanted = self._next
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            await asyncio.wait_for(asyncio.shield(wanted), _PATIENCE)
        except TimeoutError:
            raise StoreUnavailableError("the disk does not answer; send the request again later") from None

    async def _run(self) -> None:
        limiter = anyio.CapacityLimiter(1)
        while (wanted := self._next) is not None:
            self._next = None
            with suppress(Exception):
                await anyio.to_thread.run_sync(self._look, limiter=limiter, abandon_on_cancel=True)
            if not wanted.done():
                wanted.set_result(None)
