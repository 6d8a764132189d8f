"""Durability of commits, that is, whether they survive a power failure."""

from dataclasses import dataclass
from typing import Final, Literal, Protocol, get_args

__all__ = ["DURABILITIES", "Progress", "ServerDurability", "Syncer"]

ServerDurability = Literal["group", "always"]
"""When the server responds to a request: before a sync that several commits share (`group`), or after it (`always`)."""


DURABILITIES: Final[tuple[ServerDurability, ...]] = get_args(ServerDurability)


@dataclass(frozen=True)
class Progress:
    """Numbers of the last commit and the last durable commit.

    Attributes:
        epoch: Random ID that changes each time the store is opened.
        committed: Number of the last commit.
        durable: Number of the last durable commit; it and all earlier commits survive a power failure.
    """

    epoch: str
    committed: int
    durable: int


class Syncer(Protocol):
    """An interface for making commits durable and reporting the progress. Thread-safe."""

    def progress(self) -> Progress | None:
        """Return the progress; None if the disk cannot guarantee durability. Never blocks."""
        ...

    def sync(self, timeout: float) -> Progress | None:
        """Sync all current commits, waiting up to `timeout` seconds, and return the progress."""
        ...
