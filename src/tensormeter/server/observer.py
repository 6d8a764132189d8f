"""Each request, seen from outside: how it ended, and how long it took."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tensormeter.server.logs import ACCESS

__all__ = ["Observed", "Observer"]

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


class Observer:
    """ASGI middleware around everything: logs each request, and tells whoever counts them."""

    def __init__(self, app: ASGIApp, tell: Callable[[Observed], None] = lambda _: None) -> None:
        """Wrap `app`; `tell` is called on the event loop and must return at once."""
        self._app = app
        self._tell = tell

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
            self._tell(observed)
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
