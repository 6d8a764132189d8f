"""Live updates: server-sent events that say what has grown, so that a page knows what to ask for."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tensormeter.server.api.params import ApiThreads, encode, run_refs
from tensormeter.server.auth.authenticator import Access
from tensormeter.server.auth.project_scope import Stores
from tensormeter.server.limits.responses import Reader, client_of, reader_of
from tensormeter.server.store import Changes, RunRef, Store, StoreUnavailableError

__all__ = ["Shutdown", "StreamApi"]

MAX_STREAMS: Final = 256
"""Streams at once. When there are so many, a client that has fewer than another takes a place from that one."""

_POLL: Final = 1.0
_KEEPALIVE: Final = 15.0


class Shutdown:
    """Whether the server is stopping: streams end then by themselves, within a poll."""

    def __init__(self) -> None:
        self.begun = False


class _Place:
    """One of the streams that may be open: its client, and whether it must end for another's sake."""

    def __init__(self, client: str, reader: Reader | None) -> None:
        self.client = client
        self.ended = False
        self._reader = reader

    def end(self) -> None:
        """End the stream within a poll, or at once if its client reads nothing."""
        self.ended = True
        if self._reader is not None and self._reader.stalled:
            self._reader.abort()


class _Places:
    """The streams that are open. For one event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: dict[_Place, None] = {}

    def take(self, client: str, reader: Reader | None) -> _Place | None:
        """A place for a new stream, counted from now on; None if there is none for this client."""
        if len(self._taken) >= self._most:
            counts = Counter(place.client for place in self._taken)
            crowd, most = counts.most_common(1)[0]
            if counts[client] + 1 >= most:
                return None
            oldest = next(place for place in self._taken if place.client == crowd)
            oldest.end()
            del self._taken[oldest]
        place = _Place(client, reader)
        self._taken[place] = None
        return place

    def free(self, place: _Place) -> None:
        """The stream has ended."""
        self._taken.pop(place, None)


class _StreamResponse(StreamingResponse):
    """A stream that frees its place when it ends, also if the client was gone before the first event."""

    def __init__(self, events: AsyncIterator[bytes], places: _Places, place: _Place) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"Connection": "close", "X-Accel-Buffering": "no"}
        )
        self._places = places
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._places.free(self._place)


class StreamApi:
    """The handler of `/stream`."""

    def __init__(self, stores: Stores, threads: ApiThreads, shutdown: Shutdown) -> None:
        self._stores = stores
        self._threads = threads
        self._shutdown = shutdown
        self._places = _Places(MAX_STREAMS)

    def routes(self) -> list[Route]:
        """Where the handler goes."""
        return [Route("/api/v1/stream", self.stream)]

    async def stream(self, request: Request) -> Response:
        """Updates of some runs, until the client goes away."""
        query = request.query_params
        refs = run_refs(query)
        after = request.headers.get("last-event-id") or query.get("after") or None
        store, access = self._stores.of(request), request.state.access
        place = self._places.take(client_of(request), reader_of(request))  # before the answer begins: many ask at once
        if place is None:
            raise HTTPException(503, f"{MAX_STREAMS} streams are open, as many as may be", {"Retry-After": "30"})
        return _StreamResponse(self._events(store, access, refs, after, place), self._places, place)

    async def _events(
        self, store: Store, access: Access, refs: Sequence[RunRef], after: str | None, place: _Place
    ) -> AsyncIterator[bytes]:
        cursor = after
        states: dict[RunRef, str] = {}
        spoken = time.monotonic()
        yield b"retry: 2000\n\n"
        while not self._shutdown.begun and not place.ended:
            asked = cursor

            def look(asked: str | None = asked) -> Changes | None:
                return store.changes(asked, refs) if access.valid() else None

            try:
                found = await self._threads.run(look)
            except StoreUnavailableError:
                return
            if found is None:
                return
            lines: list[bytes] = []
            for change in found.changes:
                document: dict[str, Any] = {"run": change.run.run_id, "metrics": list(change.metrics)}
                if states.get(change.run) != change.state:
                    document["state"] = states[change.run] = change.state
                if change.events:
                    document["events"] = True
                if change.metrics or len(document) > 2:
                    lines.append(b"event: update\ndata: " + encode(document) + b"\n\n")
            if found.cursor != cursor:
                cursor = found.cursor
                data = encode({"cursor": cursor})
                lines.append(b"event: cursor\nid: " + cursor.encode() + b"\ndata: " + data + b"\n\n")
            now = time.monotonic()
            if not lines and now - spoken > _KEEPALIVE:
                lines.append(b": still here\n\n")
            if lines:
                spoken = now
                yield b"".join(lines)
            await anyio.sleep(_POLL)
