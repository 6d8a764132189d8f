"""Durability of commits. A durable commit survives a power failure."""

from dataclasses import dataclass
from typing import Final, Literal, Protocol, get_args

__all__ = ["DURABILITIES", "Progress", "ServerDurability", "Syncer"]

ServerDurability = Literal["group", "always"]
"""Whether the server responds to a request before (`group`) or after (`always`) the request is synced to disk."""


DURABILITIES: Final[tuple[ServerDurability, ...]] = get_args(ServerDurability)


@dataclass(frozen=True)
class Progress:
    """Numbers of the last commit and the last durable commit.

    Attributes:
        epoch: Random ID that changes each time the store is opened.
        committed: Number of the last commit; 0 before the first one.
        durable: Number of the last durable commit; 0 before the first one. This commit and all earlier ones survive a
            power failure.
    """

    epoch: str
    committed: int
    durable: int


class Syncer(Protocol):
    """The interface for syncing commits to disk and reporting which commits are durable. Thread-safe."""

    def progress(self) -> Progress | None:
        """Return the numbers of the last commit and the last durable commit; None if the file system cannot sync.

        Never blocks.
        """
        ...

    def sync(self, timeout: float) -> Progress | None:
        """Sync all current commits, and return the same as `progress`. Blocks for up to `timeout` seconds."""
        ...
