"""The open streams of updates, by run. Ingest wakes them, and tells senders whether their run has viewers.

The response to a request with data of a watched run has the header `Tensormeter-Live`. Its value is the interval, in
seconds, at which the sender may send new data of the run until the next response. The interval grows with the number of
processes that send such data, so watched runs with thousands of processes do not overload the server.
"""

import contextlib
import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import anyio

from tensormeter.otlp.batch import Attribute
from tensormeter.server.store import RunRef
from tensormeter.server.store.rules.resource_identity import Source, identify

__all__ = ["LIVE_HEADER", "Viewer", "Viewers"]

LIVE_HEADER: Final = "Tensormeter-Live"

_SHORTEST_INTERVAL: Final = 0.1
_LONGEST_INTERVAL: Final = 60.0

_MOST_REQUESTS: Final = 50
"""Number of live requests per second that the intervals allow in total."""

_RECENT: Final = 5.0
"""Seconds for which a process counts as a live sender after its request."""

_MOST_SENDERS: Final = 10_000


class Viewer:
    """An open stream. It is used on its event loop, except for `wake`."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._stored = anyio.Event()

    async def wait(self, least: float, most: float) -> None:
        """Wait until data of a watched run was stored since the last wait, from `least` to `most` seconds."""
        await anyio.sleep(least)
        with anyio.move_on_after(most - least):
            await self._stored.wait()
        self._stored = anyio.Event()

    def wake(self) -> None:
        """End the stream's wait. Any thread may call this."""
        with contextlib.suppress(RuntimeError):  # the server has stopped
            self._loop.call_soon_threadsafe(self._note)

    def _note(self) -> None:
        self._stored.set()


class Viewers:
    """All open streams. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            clock: Function that returns the time in seconds.
        """
        self._clock = clock
        self._lock = threading.Lock()
        self._viewers: dict[str, dict[Viewer, set[str | None]]] = {}
        """Streams by run ID, with the projects that each one watches; None for any project."""
        self._senders: dict[tuple[str, str, str], float] = {}
        """Time of the last live request of each process, oldest first."""

    @contextlib.contextmanager
    def watching(self, viewer: Viewer, runs: Sequence[RunRef]) -> Iterator[None]:
        """Register a stream as a viewer of runs during the block."""
        with self._lock:
            for ref in runs:
                self._viewers.setdefault(ref.run_id, {}).setdefault(viewer, set()).add(ref.project)
        try:
            yield
        finally:
            with self._lock:
                for run_id in {ref.run_id for ref in runs}:
                    viewers = self._viewers.get(run_id, {})
                    viewers.pop(viewer, None)
                    if not viewers:
                        self._viewers.pop(run_id, None)

    def stored(self, resources: Iterable[Mapping[str, Attribute]]) -> float | None:
        """Wake the streams that watch the runs of a stored request.

        Args:
            resources: Resource attributes in the request.

        Returns:
            Seconds until the sender's next request; None if the runs have no viewers.
        """
        if not self._viewers:
            return None
        sources = {source for attributes in resources if isinstance(source := identify(attributes), Source)}
        with self._lock:
            watched = {source: self._watching(source) for source in sources}
            viewers = {viewer for watching in watched.values() for viewer in watching}
            if not viewers:
                return None
            interval = self._pace([source for source, watching in watched.items() if watching])
        for viewer in viewers:
            viewer.wake()
        return interval

    def _watching(self, source: Source) -> list[Viewer]:
        viewers = self._viewers.get(source.run_id, {})
        return [viewer for viewer, projects in viewers.items() if None in projects or source.project in projects]

    def _pace(self, sources: Iterable[Source]) -> float:
        """Count processes as live senders, and return the interval at which all of them stay within the limit."""
        now = self._clock()
        for source in sources:
            key = source.project, source.run_id, source.process
            self._senders.pop(key, None)
            self._senders[key] = now
        while len(self._senders) > _MOST_SENDERS or now - next(iter(self._senders.values())) > _RECENT:
            del self._senders[next(iter(self._senders))]
        return min(max(_SHORTEST_INTERVAL, len(self._senders) / _MOST_REQUESTS), _LONGEST_INTERVAL)
