"""Authentication of requests by bearer token, and the permissions that each request needs."""

import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tensormeter.server.auth.tokens import Permission, Token, TokenFile
from tensormeter.server.http.errors import DURABLE_PATH, OTLP_PATHS

__all__ = ["Access", "Authenticator", "needed_permissions"]

_ATTEMPT_PATH: Final = re.compile(r"/api/v1/runs/[^/]+/attempt")
"""Path from which agents get attempt numbers.

The response contains only two numbers, so the permission `write` suffices.
"""


@dataclass(frozen=True)
class Access:
    """Access of a token's holder.

    Attributes:
        who: Name for logs: the token's name, "server token", "this server", or "anyone" if the server needs no token.
        project: The only project that the holder can access; None for all projects.
        allows: Function that returns whether the holder has a permission.
        valid: Function that returns whether the access is still valid, for long requests. It blocks while it accesses
            the disk.
    """

    who: str
    project: str | None = None
    allows: Callable[[Permission], bool] = field(default=lambda _: True, repr=False)
    valid: Callable[[], bool] = field(default=lambda: True, repr=False)


class Authenticator:
    """Authenticator of requests by their bearer tokens.

    Valid tokens are the server token, the token of the server's own process, and the tokens that the last `refresh` read
    from the token file.
    """

    def __init__(self, directory: Path, token: str | None, own_token: str, *, is_local: bool) -> None:
        """
        Args:
            directory: Folder that contains the token file.
            token: Server token, which has all permissions; None if there is none.
            own_token: Token of this process, which has the permission `write`.
            is_local: Whether only this machine can connect.
        """
        self._tokens = TokenFile(directory)
        self._server_token = token.encode() if token else None
        self._own_token = own_token.encode()
        self._local = is_local

    def refresh(self) -> None:
        """Read the token file if it has changed. Blocks while it accesses the disk.

        Raises:
            StoreError: The file cannot be read.
        """
        self._tokens.tokens()

    def access(self, authorization: str, *, forwarded: bool = False) -> Access | None:
        """Return the access that an `Authorization` header grants, or None for no access. Does not block.

        Args:
            authorization: Value of the header.
            forwarded: Whether a proxy forwarded the request, so that another machine may have sent it.

        Raises:
            StoreError: The last `refresh` could not read the token file.
        """
        tokens = self._tokens.latest()
        scheme, _, text = authorization.partition(" ")
        bearer = text.strip() if scheme.lower() == "bearer" else ""
        data = bearer.encode()
        if self._server_token is not None and hmac.compare_digest(data, self._server_token):
            return Access("server token")
        if hmac.compare_digest(data, self._own_token):
            return Access("this server", allows=lambda permission: permission == "write")
        token = self._tokens.find(bearer, latest=True) if tokens is not None else None
        if token is not None:
            return Access(token.name, token.project, token.allows, lambda: self._is_valid(bearer, token))
        # A server that only this machine can reach needs no token until one is created.
        if self._server_token is None and tokens is None and self._local and not forwarded:
            return Access("anyone", valid=lambda: self._tokens.tokens() is None)
        return None

    def _is_valid(self, text: str, token: Token) -> bool:
        return self._tokens.find(text) == token


def needed_permissions(method: str, path: str) -> tuple[Permission, ...]:
    """Return all permissions that a request needs."""
    if path.startswith(OTLP_PATHS) or path == DURABLE_PATH or _ATTEMPT_PATH.fullmatch(path):
        return ("write",)
    match method:
        case "GET" | "HEAD" | "POST":  # POST /api/v1/query only reads
            return ("read",)
        case "PATCH":
            return ("read", "write")
        case _:
            return ("admin",)
