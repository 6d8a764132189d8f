"""Reader that requests a metric's data in blocks, so that client and server hold only one block in memory at a time."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Generic, TypeVar

from tensormeter.client.connection import ApiError

__all__ = ["Block", "BlockReader"]

Block = TypeVar("Block")

_TOO_MANY: Final = "too_many_points"

_MIN_SPAN: Final = 1_000_000_000
"""Shortest time span, in nanoseconds, that the reader halves."""


class BlockReader(Generic[Block]):
    """Reader of one metric of one run. Not thread-safe."""

    def __init__(self, request: Callable[[str | None, int, int, int], list[Block]], size: int, limit: int) -> None:
        """Create a reader.

        Args:
            request: Function that requests blocks. Its arguments are a process ID (None for all), the start and
                exclusive end of the time range in nanoseconds since the Unix epoch, and the maximum number of points
                that the server reads.
            size: Maximum number of points that the server reads per request.
            limit: Highest number of points per request that the server allows.
        """
        self._request = request
        self._size = size
        self._limit = limit

    def read(self, processes: Callable[[], Sequence[str]], start: int, stop: int) -> Iterator[Block]:
        """Read the blocks of all processes, with one request if there is little data, otherwise one process at a time.

        Args:
            processes: Function that returns the IDs of all processes. It is called only if one request is not enough.
            start: Start of the time range, in nanoseconds since the Unix epoch.
            stop: Exclusive end of the time range, in nanoseconds since the Unix epoch.

        Raises:
            TensormeterError: The server does not respond or returns an error.
        """
        try:
            blocks = self._request(None, start, stop, self._size)
        except ApiError as error:
            if error.code != _TOO_MANY:
                raise
        else:
            yield from blocks
            return
        for process in processes():
            yield from self.read_process(process, start, stop)

    def read_process(self, process: str, start: int, stop: int) -> Iterator[Block]:
        """Read the blocks of one process; see `read`.

        A time span with too many points is halved. The server reads whole segments, so even a span of less than a second
        can have too many points. In that case, the reader raises its limit per request instead.
        """
        spans = [(start, stop)]
        begin = start  # end of the last span with points; what is between it and the next point belongs to that point
        while spans:
            first, last = spans.pop()
            try:
                blocks = self._request(process, begin, last, self._size)
            except ApiError as error:
                short = last - first < _MIN_SPAN
                if error.code != _TOO_MANY or (short and self._size >= self._limit):
                    raise
                if short:
                    self._size = min(2 * self._size, self._limit)
                    spans.append((first, last))
                else:
                    middle = (first + last) // 2
                    spans += [(middle, last), (first, middle)]
            else:
                if blocks:
                    begin = last
                yield from blocks
