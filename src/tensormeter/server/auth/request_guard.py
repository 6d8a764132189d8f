"""Who may talk to the server, decided on the headers alone, before any body is read.

- `Host` must be a name of this server. Without that, a web page whose name is rebound to 127.0.0.1 could read it.
- `Origin`, if a browser sends one, must be this server: no page of another site may read or write.
- A bearer token that allows it, unless there are none on this machine, for everything but `/`, `/healthz`, `/readyz` and the web page's files, which show no data.
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
from tensormeter.server.auth.disk_lookup import Lookup
from tensormeter.server.http.errors import error_response
from tensormeter.server.http.static_files import STATIC_PREFIX
from tensormeter.server.store.models.errors import StoreUnavailableError
from tensormeter.settings import is_loopback

__all__ = ["RequestGuard"]

_PUBLIC: Final = frozenset({"/", "/healthz", "/readyz"})

_log: Final = logging.getLogger(__name__)

_QUIET: Final = 60.0
"""Seconds in which the log says once that the tokens cannot be read."""

_FORWARDED: Final = ("forwarded", "x-forwarded-", "x-real-ip")
"""Beginnings of the headers that proxies add which pass requests of others on."""

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class RequestGuard:
    """ASGI middleware around the whole application; also puts the security headers on every answer."""

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
            app: Application to guard.
            authenticator: Source of permissions.
            host: Address that the server is bound to.
            allowed_hosts: Further values of `Host` that requests may carry.
            stalled: Reason why the disk cannot be asked now, or None; does not block.
        """
        self._app = app
        self._stalled = stalled
        self._authenticator = authenticator
        self._tokens = Lookup(self._authenticator.refresh)
        self._reported: tuple[str, float] | None = None
        self._hosts = frozenset({*allowed_hosts, host.lower()})
        self._bound_to_loopback = is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._foreign(scope)
        if refusal is None and not self._is_public(scope["path"]):
            refusal = await self._without_tokens(scope) or self._refusal(scope)
        await (refusal or self._app)(scope, receive, send_with_headers)

    @staticmethod
    def _is_public(path: str) -> bool:
        return path in _PUBLIC or path.startswith(STATIC_PREFIX)

    async def _without_tokens(self, scope: Scope) -> Response | None:
        """Have the tokens looked up; the answer if the disk does not say them."""
        problem = self._stalled()
        if problem is None:
            try:
                await self._tokens.fresh()
            except StoreUnavailableError as error:
                problem = self._stalled() or str(error)
        return None if problem is None else error_response(scope, 503, "unavailable", problem, {"Retry-After": "5"})

    def _foreign(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(_hostname(host)):
            message = f"this server is not {host!r}; if it should be, start it with --allowed-host"
            return error_response(scope, 421, "unknown_host", message)
        origin = headers.get("origin")
        if origin is not None and _origin_host(origin) != host.lower():
            return error_response(scope, 403, "cross_origin", "requests from pages of other sites are refused")
        return None

    def _refusal(self, scope: Scope) -> Response | None:
        path, headers = scope["path"], Headers(scope=scope)
        try:
            forwarded = any(name.startswith(_FORWARDED) for name in headers)
            access = self._authenticator.access(headers.get("authorization", ""), forwarded=forwarded)
        except StoreError as error:
            now = time.monotonic()
            if self._reported is None or self._reported[0] != str(error) or now > self._reported[1] + _QUIET:
                self._reported = str(error), now
                _log.error("tensormeter: %s", error)
            message = "the tokens cannot be read; the server's log says why"
            return error_response(scope, 503, "unavailable", message, {"Retry-After": "5"})
        if access is None:
            message = "a valid bearer token is needed; set TENSORMETER_TOKEN to one of this server"
            if forwarded and self._bound_to_loopback:
                message += ", which needs one for whoever comes through a proxy"
            return error_response(scope, 401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})
        missing = [one for one in needed_permissions(scope["method"], path) if not access.allows(one)]
        if missing:
            message = f"the token {access.who!r} may not {' and '.join(missing)}; ask for one that may"
            return error_response(scope, 403, "forbidden", message)
        scope.setdefault("state", {})["access"] = access
        return None

    def _is_ours(self, host: str | None) -> bool:
        if host is None:
            return False
        if is_loopback(host) or host in self._hosts:
            return True
        # A page can rebind a name, never an address; and off the loopback there is always a token.
        return not self._bound_to_loopback and _is_address(host)


def _hostname(host: str) -> str | None:
    """The name in a `Host` header, lowercase, without port and brackets; None if it is not one."""
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018 - raises if it is not a number
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and parts.username is None and parts.password is None else None


def _origin_host(origin: str) -> str | None:
    """The host and port in an `Origin` header, lowercase; None for "null" and anything odd."""
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
