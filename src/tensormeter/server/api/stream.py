"""Live updates: server-sent events that say what has grown, so that a page knows what to ask for."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tensormeter.server.access import Access
from tensormeter.server.api.request import ApiThreads, encode, run_refs
from tensormeter.server.scope import Stores
from tensormeter.server.store import RunRef, Store, StoreUnavailableError

__all__ = ["Shutdown", "StreamApi"]

MAX_STREAMS: Final = 256

_POLL: Final = 1.0
_KEEPALIVE: Final = 15.0


class Shutdown:
    """Whether the server is stopping: streams end then by themselves, within a poll."""

    def __init__(self) -> None:
        self.begun = False


class StreamApi:
    """The handler of `/stream`."""

    def __init__(self, stores: Stores, threads: ApiThreads, shutdown: Shutdown) -> None:
        self._stores = stores
        self._threads = threads
        self._shutdown = shutdown
        self._open = 0

    def routes(self) -> list[Route]:
        """Where the handler goes."""
        return [Route("/api/v1/stream", self.stream)]

    async def stream(self, request: Request) -> Response:
        """Updates of some runs, until the client goes away."""
        query = request.query_params
        refs = run_refs(query)
        if self._open >= MAX_STREAMS:
            raise HTTPException(503, f"more than {MAX_STREAMS} streams are open", {"Retry-After": "30"})
        after = request.headers.get("last-event-id") or query.get("after") or None
        return StreamingResponse(
            self._events(self._stores.of(request), request.state.access, refs, after),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )

    async def _events(
        self, store: Store, access: Access, refs: Sequence[RunRef], after: str | None
    ) -> AsyncIterator[bytes]:
        self._open += 1
        try:
            cursor = after
            states: dict[RunRef, str] = {}
            spoken = time.monotonic()
            yield b"retry: 2000\n\n"
            while not self._shutdown.begun and access.valid():
                asked = cursor
                try:
                    found = await self._threads.run(lambda asked=asked: store.changes(asked, refs))  # type: ignore[misc]
                except StoreUnavailableError:
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
        finally:
            self._open -= 1
