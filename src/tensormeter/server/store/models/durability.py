"""Durability of commits: when a request is answered, and how far commits survive a power failure."""

from dataclasses import dataclass
from typing import Final, Literal, Protocol, get_args

__all__ = ["DURABILITIES", "Progress", "ServerDurability", "Syncer"]

ServerDurability = Literal["group", "always"]
"""When a request is answered: at once, and synced with others soon after (`group`), or after the sync (`always`)."""


DURABILITIES: Final[tuple[ServerDurability, ...]] = get_args(ServerDurability)


@dataclass(frozen=True)
class Progress:
    """Number of commits, and how many of them are durable.

    Attributes:
        epoch: Random name of this opening of the store.
        committed: Number of the last commit.
        durable: Number of the last commit that survives a power failure, as do all before it.
    """

    epoch: str
    committed: int
    durable: int


class Syncer(Protocol):
    """Makes commits durable and reports its progress. Methods may be called on any thread."""

    def progress(self) -> Progress | None:
        """Return how far commits are durable; None if the disk cannot promise anything. Never blocks."""
        ...

    def sync(self, timeout: float) -> Progress | None:
        """Sync all present commits, for at most `timeout` seconds, and return the progress."""
        ...
