"""Signals of OTLP that the server does not store: senders are told so in their own terms, and the log says it once."""

import logging
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tensormeter.server.http.errors import error_response

__all__ = ["OtherSignals"]

_PATHS: Final = {"/v1/traces": "traces", "/v1development/profiles": "profiles"}

_log: Final = logging.getLogger(__name__)


class OtherSignals:
    """Handlers of the signals besides metrics and logs."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def routes(self) -> list[Route]:
        """Where the handlers go."""
        return [Route(path, self.refuse, methods=["POST"]) for path in _PATHS]

    async def refuse(self, request: Request) -> Response:
        """Answer 404, which no sender of OTLP tries again (OTLP specification, OTLP/HTTP: Failures)."""
        signal = _PATHS[request.url.path]
        message = f"{signal} are not stored here; send metrics and logs only, to /v1/metrics and /v1/logs"
        # An empty request, as probes send it, loses nothing.
        is_empty = request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers
        if signal not in self._logged and not is_empty:
            self._logged.add(signal)
            client = request.client.host if request.client is not None else "a client"
            _log.warning(
                "tensormeter: %s sent %s, which are not stored and are answered 404; "
                "switch them off in the sender, or leave this server out of the Collector's pipeline of %s. Said once",
                client,
                signal,
                signal,
            )
        return error_response(request.scope, 404, "not_found", message)
