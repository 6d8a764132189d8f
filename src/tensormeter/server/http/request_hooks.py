"""Hooks that observe the server: the outcome and duration of each request, and the size of OTLP requests."""

import time
from dataclasses import dataclass
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tensormeter.server.http.logs import ACCESS

__all__ = ["Ingested", "Listener", "Observed", "Observer"]

_RUNS: Final = ["", "api", "v1", "runs"]


@dataclass(frozen=True)
class Observed:
    """A finished request.

    Attributes:
        method: HTTP method.
        route: Path with placeholders for parameters, or "" if no route matches. Clients therefore cannot create many
            distinct values.
        status: HTTP status, or 0 if the client disconnected before the response.
        seconds: Duration in seconds, from the request's headers to the last byte of the response.
        sent: Size of the response body in bytes.
    """

    method: str
    route: str
    status: int
    seconds: float
    sent: int


@dataclass(frozen=True)
class Ingested:
    """An OTLP request that the store has accepted.

    Attributes:
        signal: Signal of the request, "metrics" or "logs".
        items: Number of points or log records.
        rejected: Number of items that the store permanently rejected.
        duplicate: Whether the store already had this request.
        received: Size of the body as sent, before decompression, in bytes.
    """

    signal: str
    items: int
    rejected: int
    duplicate: bool
    received: int


class Listener:
    """Base class of objects that observe the server. Its own methods do nothing."""

    def request(self, observed: Observed) -> None:
        """Handle the end of a request. This runs on the event loop, so it must return immediately."""

    def ingested(self, ingested: Ingested) -> None:
        """Handle a stored OTLP request. This runs on worker threads."""


class Observer:
    """The outermost ASGI middleware, which logs each request and notifies a listener."""

    def __init__(self, app: ASGIApp, listener: Listener) -> None:
        self._app = app
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request, and report it when it ends."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = time.perf_counter()
        status, sent = 0, 0

        async def counting(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, counting)
        finally:
            observed = Observed(scope["method"], _route(scope), status, time.perf_counter() - started_at, sent)
            self._listener.request(observed)
            _log(scope, observed)


def _log(scope: Scope, observed: Observed) -> None:
    if not ACCESS.isEnabledFor(20):
        return
    client, access = scope.get("client"), scope.get("state", {}).get("access")
    fields = {
        "method": observed.method,
        # The query string is omitted, because filters in it could reveal private details of runs.
        "path": scope["path"],
        "status": observed.status,
        "milliseconds": round(observed.seconds * 1000, 3),
        "bytes": observed.sent,
        "client": client[0] if client else None,
        "token": access.who if access else None,
    }
    ACCESS.info("request", extra={"fields": fields})


def _route(scope: Scope) -> str:
    if "endpoint" not in scope:
        return ""
    parts = scope["path"].split("/")
    if parts[:4] == _RUNS and len(parts) > 4:
        parts[4] = "{run_id}"
        if len(parts) > 6:
            parts[6] = "{digest}"
    elif parts[1] == "static":
        parts[2:] = ["{name}"]
    return "/".join(parts)
