"""Lookups on disk that requests need. A thread performs them, so that the event loop does not wait for the disk."""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from tensormeter.server.store.models.errors import StoreUnavailableError

__all__ = ["Lookup"]

_TIMEOUT: Final = 5.0
"""Maximum seconds for which a request waits for the disk."""

_Future = asyncio.Future[None]


class Lookup:
    """Lookups on a daemon thread, for one event loop. Requests that arrive during a lookup share the next lookup."""

    def __init__(self, look: Callable[[], object]) -> None:
        """Args:
        look: Function that blocks while it accesses the disk. It stores its result, or a StoreError, for the callers.
        """
        self._look = look
        self._next: _Future | None = None
        self._busy = False
        self._queue: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, _Future]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="tensormeter-lookup", daemon=True)

    async def fresh(self) -> None:
        """Wait for a lookup that begins after this call, so that changes on disk take effect immediately.

        Raises:
            StoreUnavailableError: The disk is unresponsive.
        """
        loop = asyncio.get_running_loop()
        lookup = self._next = self._next or loop.create_future()
        if not self._busy:
            self._begin(loop)
        done, _ = await asyncio.wait((lookup,), timeout=_TIMEOUT)
        if not done:
            raise StoreUnavailableError("the disk is not responding; retry the request later")

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._next is not None:
            if not self._thread.is_alive():
                self._thread.start()
            self._busy = True
            self._queue.put((loop, self._next))
            self._next = None

    def _work(self) -> None:
        while True:
            loop, lookup = self._queue.get()
            with suppress(Exception):  # `look` has stored the error
                self._look()
            with suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(self._end, loop, lookup)

    def _end(self, loop: asyncio.AbstractEventLoop, lookup: _Future) -> None:
        lookup.set_result(None)
        self._busy = False
        self._begin(loop)
