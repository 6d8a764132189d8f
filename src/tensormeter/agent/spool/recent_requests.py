"""The spool's latest requests, kept in memory in case the disk can no longer be read."""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

__all__ = ["RecentRequest", "RecentRequests"]

_MOST_BYTES: Final = 8 << 20

_ROW_BYTES: Final = 500
"""Estimated size of a request without its body, in bytes."""


class RecentRequest(NamedTuple):
    """A request that was put into the spool.

    Attributes:
        sequence: Sequence number in the spool.
        row: Columns id, signal, items, priority, checksum and body.
        destinations: Names of the request's destinations.
    """

    sequence: int
    row: tuple[str, str, int, int, int, bytes]
    destinations: tuple[str, ...]

    @property
    def size(self) -> int:
        """Estimated size in memory, in bytes."""
        return len(self.row[-1]) + _ROW_BYTES


class RecentRequests:
    """A bounded buffer that drops the oldest requests first."""

    def __init__(self) -> None:
        self._requests: dict[int, RecentRequest] = {}
        self._bytes = 0

    def __iter__(self) -> Iterator[RecentRequest]:
        return iter(list(self._requests.values()))

    def add(self, requests: Iterable[RecentRequest]) -> None:
        for request in requests:
            self._requests[request.sequence] = request
            self._bytes += request.size
        while self._bytes > _MOST_BYTES:
            self._bytes -= self._requests.pop(next(iter(self._requests))).size

    def clear(self) -> None:
        self._requests.clear()
        self._bytes = 0
