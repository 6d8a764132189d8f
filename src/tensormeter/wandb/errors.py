"""W&B's exceptions, which scripts catch. `tensormeter.wandb` raises `UsageError` and `UnsupportedError`."""

from typing import Any

__all__ = [
    "AuthenticationError",
    "CommError",
    "Error",
    "UnsupportedError",
    "UsageError",
    "WandbCoreNotAvailableError",
]


class Error(Exception):
    """The base of all exceptions of this package.

    Attributes:
        message: The message.
        context: Further information; empty here.
    """

    def __init__(self, message: str = "", context: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.context = context or {}


class CommError(Error):
    """W&B's failure to reach its server. It is never raised here, because log calls do not use the network."""


class AuthenticationError(CommError):
    """W&B's failure to log in. It is never raised here."""


class UsageError(Error):
    """An argument is invalid."""


class UnsupportedError(UsageError):
    """A function of W&B that has no counterpart here. The message names the alternative."""


class WandbCoreNotAvailableError(Error):
    """W&B's failure to start its process. It is never raised here."""
