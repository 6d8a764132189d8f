"""What the server does, seen from outside: how each request ended, how long it took, and what came in."""

import time
from dataclasses import dataclass
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tensormeter.server.http.logs import ACCESS

__all__ = ["Ingested", "Listener", "Observed", "Observer"]

_RUNS: Final = ["", "api", "v1", "runs"]


@dataclass(frozen=True)
class Observed:
    """A request that is over.

    Attributes:
        method: HTTP method.
        route: Path with parameters in place of what was given; "" if there is no such path, so that nobody makes up many.
        status: HTTP status; 0 if the client went away first.
        seconds: From its headers to the last byte of the answer.
        sent: Bytes of the answer's body.
    """

    method: str
    route: str
    status: int
    seconds: float
    sent: int


@dataclass(frozen=True)
class Ingested:
    """A request of OTLP that the store has answered.

    Attributes:
        signal: "metrics" or "logs".
        items: Points, or log records.
        rejected: How many of them were refused for good.
        duplicate: Whether the store had the request already.
        received: Bytes of the body as it was sent.
    """

    signal: str
    items: int
    rejected: int
    duplicate: bool
    received: int


class Listener:
    """Whoever wants to know what the server does; this one does not."""

    def request(self, observed: Observed) -> None:
        """A request is over. Called on the event loop: return at once."""

    def ingested(self, ingested: Ingested) -> None:
        """Something was stored. Called on worker threads."""


class Observer:
    """ASGI middleware around everything: logs each request, and tells a listener."""

    def __init__(self, app: ASGIApp, listener: Listener) -> None:
        self._app = app
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
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
            observed = Observed(scope["method"], _route(scope), status, time.perf_counter() - begun, sent)
            self._listener.request(observed)
            _log(scope, observed)


def _log(scope: Scope, observed: Observed) -> None:
    if not ACCESS.isEnabledFor(20):
        return
    client, access = scope.get("client"), scope.get("state", {}).get("access")
    fields = {
        "method": observed.method,
        # Without the query: filters may say more about runs than a log should keep.
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
