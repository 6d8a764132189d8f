"""Looking something up on the disk for requests, without making the event loop wait for the disk."""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from tensormeter.server.store.models.errors import StoreUnavailableError

__all__ = ["Lookup"]

_PATIENCE: Final = 5.0
"""Seconds that a request waits for the disk."""

_Waiting = asyncio.Future[None]


class Lookup:
    """One look for all requests that came while the last one was under way, on one daemon thread. For one event loop."""

    def __init__(self, look: Callable[[], object]) -> None:
        """Args:
        look: Blocks for the disk. It keeps what it finds, and what it raises as a StoreError, for whoever asks.
        """
        self._look = look
        self._next: _Waiting | None = None
        self._busy = False
        self._asked: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, _Waiting]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="tensormeter-lookup", daemon=True)

    async def fresh(self) -> None:
        """Wait for a look that begins after this call, so that changes take effect at once.

        Raises:
            StoreUnavailableError: The disk does not answer.
        """
        loop = asyncio.get_running_loop()
        wanted = self._next = self._next or loop.create_future()
        if not self._busy:
            self._begin(loop)
        done, _ = await asyncio.wait((wanted,), timeout=_PATIENCE)
        if not done:
            raise StoreUnavailableError("the disk does not answer; send the request again later")

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._next is not None:
            if not self._thread.is_alive():
                self._thread.start()
            self._busy = True
            self._asked.put((loop, self._next))
            self._next = None

    def _work(self) -> None:
        while True:
            loop, waiting = self._asked.get()
            with suppress(Exception):  # whoever asks for what was found gets it
                self._look()
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._end, loop, waiting)

    def _end(self, loop: asyncio.AbstractEventLoop, waiting: _Waiting) -> None:
        waiting.set_result(None)
        self._busy = False
        self._begin(loop)
