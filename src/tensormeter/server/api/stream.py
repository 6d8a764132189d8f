"""Live updates: server-sent events that list metrics with new points, so that the page queries only these metrics."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tensormeter.server.api.params import read_parameters, run_refs
from tensormeter.server.api.request_schemas import StreamParameters
from tensormeter.server.api.responses import encode
from tensormeter.server.api.schemas import Cursor, Update
from tensormeter.server.api.threads import ApiThreads
from tensormeter.server.auth.authenticator import Access
from tensormeter.server.auth.project_scope import Stores
from tensormeter.server.limits.responses import Reader, client_of, reader_of
from tensormeter.server.store import Changes, RunRef, Store, StoreUnavailableError
from tensormeter.server.viewers import Viewer, Viewers

__all__ = ["Shutdown", "StreamApi"]

MAX_STREAMS: Final = 256
"""Maximum number of open streams.

At this limit, a new stream replaces the oldest stream of the client with the most streams, provided that this client
has more streams than the new stream's client would have.
"""

_POLL: Final = 1.0
"""Maximum seconds between two reads. Other servers on the same database may store data without waking the stream."""

_LEAST: Final = 0.05
"""Minimum seconds between two reads, so that many requests cause few reads."""

_MOST_READS: Final = 200
"""Maximum number of reads per second of all streams together. It increases the minimum seconds between two reads."""

_KEEPALIVE: Final = 15.0


class Shutdown:
    """Signal that the server is stopping. Streams end within one poll interval."""

    def __init__(self) -> None:
        self.started = False


class _Place:
    """Place of an open stream. It holds the stream's client, and whether the stream must end for another client."""

    def __init__(self, client: str, reader: Reader | None) -> None:
        self.client = client
        self.evicted = False
        self._reader = reader

    def end(self) -> None:
        """End the stream within one poll interval, or immediately if its client is not reading."""
        self.evicted = True
        if self._reader is not None and self._reader.stalled:
            self._reader.abort()


class _Places:
    """Places of all open streams. Use an instance on one event loop only."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: dict[_Place, None] = {}

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, client: str, reader: Reader | None) -> _Place | None:
        """Reserve a place for a new stream, or return None if there is no place for this client."""
        if len(self._taken) >= self._most:
            counts = Counter(place.client for place in self._taken)
            largest, most = counts.most_common(1)[0]
            if counts[client] + 1 >= most:
                return None
            oldest = next(place for place in self._taken if place.client == largest)
            oldest.end()
            del self._taken[oldest]
        place = _Place(client, reader)
        self._taken[place] = None
        return place

    def free(self, place: _Place) -> None:
        """Free the place of a stream that has ended."""
        self._taken.pop(place, None)


class _StreamResponse(StreamingResponse):
    """Stream that frees its place when it ends, even if the client disconnects before the first event."""

    def __init__(
        self, events: AsyncIterator[bytes], places: _Places, place: _Place, watching: AbstractContextManager[None]
    ) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"Connection": "close", "X-Accel-Buffering": "no"}
        )
        self._places = places
        self._place = place
        self._watching = watching

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._watching:
                await super().__call__(scope, receive, send)
        finally:
            self._places.free(self._place)


class StreamApi:
    """Handler of `/stream`."""

    def __init__(self, stores: Stores, threads: ApiThreads, shutdown: Shutdown, viewers: Viewers) -> None:
        self._stores = stores
        self._viewers = viewers
        self._threads = threads
        self._shutdown = shutdown
        self._places = _Places(MAX_STREAMS)

    def routes(self) -> list[Route]:
        """Return the handler's route."""
        return [Route("/api/v1/stream", self.stream)]

    async def stream(self, request: Request) -> Response:
        """Stream updates of runs until the client disconnects."""
        parameters = read_parameters(request, StreamParameters)
        refs = run_refs(parameters)
        after = request.headers.get("last-event-id") or parameters.after or None
        store, access = self._stores.of(request), request.state.access
        place = self._places.take(
            client_of(request), reader_of(request)
        )  # reserved before the response starts, because many requests may arrive at once
        if place is None:
            raise HTTPException(
                503, f"{MAX_STREAMS} streams are open, which is the limit; try again later", {"Retry-After": "30"}
            )
        viewer = Viewer(asyncio.get_running_loop())
        watched = refs if access.project is None else [RunRef(ref.run_id, access.project) for ref in refs]
        events = self._events(store, access, refs, after, place, viewer)
        return _StreamResponse(events, self._places, place, self._viewers.watching(viewer, watched))

    async def _events(
        self, store: Store, access: Access, refs: Sequence[RunRef], after: str | None, place: _Place, viewer: Viewer
    ) -> AsyncIterator[bytes]:
        cursor = after
        states: dict[RunRef, str] = {}
        last_event = time.monotonic()
        yield b"retry: 2000\n\n"
        while not self._shutdown.started and not place.evicted:
            known = cursor

            def read_changes(known: str | None = known) -> Changes | None:
                return store.changes(known, refs) if access.valid() else None

            try:
                changes = await self._threads.run(read_changes)
            except StoreUnavailableError:
                return
            if changes is None:
                return
            events: list[bytes] = []
            for change in changes.changes:
                update = Update(change.run.run_id, change.metrics)
                if change.many:
                    update.many = True
                if states.get(change.run) != change.state:
                    update.state = states[change.run] = change.state
                if change.events:
                    update.events = True
                if change.logs:
                    update.logs = True
                if update.metrics or update.many or update.state or update.events or update.logs:
                    events.append(b"event: update\ndata: " + encode(update) + b"\n\n")
            if changes.cursor != cursor:
                cursor = changes.cursor
                data = encode(Cursor(cursor))
                events.append(b"event: cursor\nid: " + cursor.encode() + b"\ndata: " + data + b"\n\n")
            now = time.monotonic()
            if not events and now - last_event > _KEEPALIVE:
                events.append(b": still here\n\n")
            if events:
                last_event = now
                yield b"".join(events)
            await viewer.wait(min(_POLL, max(_LEAST, len(self._places) / _MOST_READS)), _POLL)
