"""Takes requests out of spools."""

from collections.abc import Iterator

from tensormeter.agent.spool.spool import Spool
from tensormeter.exporter import Request

__all__ = ["take_requests"]


def take_requests(spool: Spool, destination: str = "a") -> Iterator[Request]:
    """The requests that wait for a destination, in order. Each is marked as delivered when the next one is taken."""
    while (entry := spool.next(destination)) is not None:
        sequence, request = entry
        yield request
        spool.done(destination, sequence)
