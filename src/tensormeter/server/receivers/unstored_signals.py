"""Responses to OTLP signals that the server does not store.

Senders get 404, and the log explains the reason once per signal.
"""

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
    """Handlers for signals other than metrics and logs."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def routes(self) -> list[Route]:
        """Return the handlers' routes."""
        return [Route(path, self.refuse, methods=["POST"]) for path in _PATHS]

    async def refuse(self, request: Request) -> Response:
        """Respond with 404, which OTLP senders do not retry (OTLP specification, OTLP/HTTP: Failures)."""
        signal = _PATHS[request.url.path]
        message = f"this server does not store {signal}; send only metrics and logs, to /v1/metrics and /v1/logs"
        # An empty request, which some health checks send, loses no data.
        is_empty = request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers
        if signal not in self._logged and not is_empty:
            self._logged.add(signal)
            client = request.client.host if request.client is not None else "a client"
            _log.warning(
                "tensormeter: %s sent %s, which the server does not store (response 404); disable them in the "
                "sender, or remove this server from the Collector's pipeline for %s. Logged once",
                client,
                signal,
                signal,
            )
        return error_response(request.scope, 404, "not_found", message)
