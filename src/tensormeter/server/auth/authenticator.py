"""What a request may do: told by its token before anything else is looked at."""

import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tensormeter.server.auth.tokens import Permission, Token, TokenFile
from tensormeter.server.http.errors import DURABLE_PATH, OTLP_PATHS

__all__ = ["Access", "Authenticator", "needed_permissions"]

_NUMBERING: Final = re.compile(r"/api/v1/runs/[^/]+/attempt")
"""The path at which agents ask for the numbers of attempts. The answer holds two numbers, so a token that writes will do."""


@dataclass(frozen=True)
class Access:
    """What the holder of a token may do.

    Attributes:
        who: For logs: the token's name, "server token", or "anyone" where none is needed.
        project: The only project there is for the holder; None: all there are.
        allows: Whether a permission is given.
        valid: Whether it still is: asked by what goes on for long. Blocks for the disk.
    """

    who: str
    project: str | None = None
    allows: Callable[[Permission], bool] = field(default=lambda _: True, repr=False)
    valid: Callable[[], bool] = field(default=lambda: True, repr=False)


class Authenticator:
    """Knows the server's token, that of its own process, and the file of tokens, as it was when `refresh` was last called."""

    def __init__(self, directory: Path, token: str | None, own_token: str, *, is_local: bool) -> None:
        """
        Args:
            directory: Folder of the token file.
            token: Server token with every permission, if there is one.
            own_token: Token of this process, which may write.
            is_local: Whether only this machine can connect.
        """
        self._tokens = TokenFile(directory)
        self._server_token = token.encode() if token else None
        self._own_token = own_token.encode()
        self._local = is_local

    def refresh(self) -> None:
        """Look at the file of tokens. Blocks for the disk.

        Raises:
            StoreError: It cannot be read.
        """
        self._tokens.tokens()

    def access(self, authorization: str, *, forwarded: bool = False) -> Access | None:
        """What a request with this `Authorization` header may do; None: nothing. Does not block.

        Args:
            authorization: The header.
            forwarded: Whether it came through a proxy, so that somebody else than this machine may have sent it.

        Raises:
            StoreError: The file of tokens cannot be read, so nobody is known.
        """
        known = self._tokens.latest()
        scheme, _, text = authorization.partition(" ")
        given = text.strip() if scheme.lower() == "bearer" else ""
        data = given.encode()
        if self._server_token is not None and hmac.compare_digest(data, self._server_token):
            return Access("server token")
        if hmac.compare_digest(data, self._own_token):
            return Access("this server", allows=lambda permission: permission == "write")
        token = self._tokens.find(given, latest=True) if known is not None else None
        if token is not None:
            return Access(token.name, token.project, token.allows, lambda: self._still(given, token))
        # Where nothing but this machine can ask, and no token was ever made, none is needed.
        if self._server_token is None and known is None and self._local and not forwarded:
            return Access("anyone", valid=lambda: self._tokens.tokens() is None)
        return None

    def _still(self, text: str, token: Token) -> bool:
        return self._tokens.find(text) == token


def needed_permissions(method: str, path: str) -> tuple[Permission, ...]:
    """What a request must be allowed to do."""
    if path.startswith(OTLP_PATHS) or path == DURABLE_PATH or _NUMBERING.fullmatch(path):
        return ("write",)
    match method:
        case "GET" | "HEAD" | "POST":  # POST /api/v1/query is a question
            return ("read",)
        case "PATCH":
            return ("read", "write")
        case _:
            return ("admin",)
