"""Access control based only on a request's headers, before the server reads the body.

- `Host` must be a name of this server. Otherwise, a web page could rebind its own host name to 127.0.0.1 and read data
  from the server.
- `Origin`, if a browser sends it, must be this server, so that other sites' pages can neither read nor write data.
- A bearer token must allow the request, unless the server needs no tokens. `/`, `/healthz`, `/readyz` and the web page's files show
  no data and need no token.
"""

import ipaddress
import logging
import time
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tensormeter.errors import StoreError
from tensormeter.server.auth.authenticator import Authenticator, needed_permissions
from tensormeter.server.auth.disk_read import Lookup
from tensormeter.server.http.errors import error_response
from tensormeter.server.http.static_files import STATIC_PREFIX
from tensormeter.server.store.models.errors import StoreUnavailableError
from tensormeter.settings import is_loopback

__all__ = ["RequestGuard"]

_PUBLIC: Final = frozenset({"/", "/healthz", "/readyz"})

_log: Final = logging.getLogger(__name__)

_LOG_INTERVAL: Final = 60.0
"""Minimum seconds between two log lines about the same error in the token file."""

_FORWARDED: Final = ("forwarded", "x-forwarded-", "x-real-ip")
"""Prefixes of headers that proxies add to forwarded requests."""

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class RequestGuard:
    """ASGI middleware around the whole application. It also adds security headers to every response."""

    def __init__(
        self,
        app: ASGIApp,
        authenticator: Authenticator,
        host: str,
        allowed_hosts: Iterable[str],
        stalled: Callable[[], str | None],
    ) -> None:
        """
        Args:
            app: Application to protect.
            authenticator: Authenticator for the requests' tokens.
            host: Address that the server is bound to.
            allowed_hosts: Additional `Host` values that requests may have.
            stalled: Function that returns why the disk is unresponsive, or None. It must not block.
        """
        self._app = app
        self._stalled = stalled
        self._authenticator = authenticator
        self._tokens = Lookup(self._authenticator.refresh)
        self._reported: tuple[str, float] | None = None
        self._hosts = frozenset({*allowed_hosts, host.lower()})
        self._bound_to_loopback = is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle or refuse the request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._wrong_origin(scope)
        if refusal is None and not self._is_public(scope["path"]):
            refusal = await self._refresh_tokens(scope) or self._refusal(scope)
        await (refusal or self._app)(scope, receive, send_with_headers)

    @staticmethod
    def _is_public(path: str) -> bool:
        return path in _PUBLIC or path.startswith(STATIC_PREFIX)

    async def _refresh_tokens(self, scope: Scope) -> Response | None:
        """Refresh the tokens from the token file. Return an error response if the disk is unresponsive."""
        problem = self._stalled()
        if problem is None:
            try:
                await self._tokens.fresh()
            except StoreUnavailableError as error:
                problem = self._stalled() or str(error)
        return None if problem is None else error_response(scope, 503, "unavailable", problem, {"Retry-After": "5"})

    def _wrong_origin(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_own_name(_hostname(host)):
            message = f"unknown host {host!r}; if clients should use this name, start the server with --allowed-host"
            return error_response(scope, 421, "unknown_host", message)
        origin = headers.get("origin")
        if origin is not None and _origin_host(origin) != host.lower():
            return error_response(scope, 403, "cross_origin", "requests from other sites' web pages are refused")
        return None

    def _refusal(self, scope: Scope) -> Response | None:
        path, headers = scope["path"], Headers(scope=scope)
        try:
            forwarded = any(name.startswith(_FORWARDED) for name in headers)
            access = self._authenticator.access(headers.get("authorization", ""), forwarded=forwarded)
        except StoreError as error:
            now = time.monotonic()
            if self._reported is None or self._reported[0] != str(error) or now > self._reported[1] + _LOG_INTERVAL:
                self._reported = str(error), now
                _log.error("tensormeter: %s", error)
            message = "the server cannot read its token file; see the server's log"
            return error_response(scope, 503, "unavailable", message, {"Retry-After": "5"})
        if access is None:
            message = "access token required; set TENSORMETER_TOKEN, or create a token with `tensormeter token create` on the server"
            if forwarded and self._bound_to_loopback:
                message += " (requests through a proxy always need one)"
            return error_response(scope, 401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})
        scope.setdefault("state", {})["access"] = access  # also for the access log, even if a permission is missing
        missing = [
            permission for permission in needed_permissions(scope["method"], path) if not access.allows(permission)
        ]
        if missing:
            message = f"the token {access.who!r} lacks the permission {' and '.join(missing)}; use a token that has it"
            return error_response(scope, 403, "forbidden", message)
        return None

    def _is_own_name(self, host: str | None) -> bool:
        if host is None:
            return False
        if is_loopback(host) or host in self._hosts:
            return True
        # Accept any address: a web page can rebind a name but not an address, and a server that is not bound to loopback
        # always needs a token.
        return not self._bound_to_loopback and _is_address(host)


def _hostname(host: str) -> str | None:
    """Return the lowercase name in a `Host` header, without port and brackets, or None if the header is invalid."""
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018 - raises if it is not a number
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and parts.username is None and parts.password is None else None


def _origin_host(origin: str) -> str | None:
    """Return the lowercase host and port in an `Origin` header, or None for "null" and invalid values."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
