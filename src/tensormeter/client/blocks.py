"""All that a metric has, piece by piece, so that neither side holds more than a piece."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Generic, TypeVar

from tensormeter.client.connection import ApiError

__all__ = ["Block", "BlockReader"]

Block = TypeVar("Block")

_TOO_MANY: Final = "too_many_points"

_SHORTEST: Final = 1_000_000_000
"""Nanoseconds: a stretch that is shorter is not halved."""


class BlockReader(Generic[Block]):
    """Reads one metric of one run. For one thread."""

    def __init__(self, ask: Callable[[str | None, int, int, int], list[Block]], most: int, limit: int) -> None:
        """Create a reader.

        Args:
            ask: Asks the server, for one process or all of them (None), from a time until before another, in nanoseconds
                since the Unix epoch, and with what the server may look at, at most.
            most: What one request looks at, at most.
            limit: The server's own limit.
        """
        self._ask = ask
        self._most = most
        self._limit = limit

    def read(self, processes: Callable[[], Sequence[str]], start: int, stop: int) -> Iterator[Block]:
        """What has start <= time < stop: of all processes at once if that is little, else process by process.

        Args:
            processes: Gives the ids of all processes; called if it has to be.
            start: Nanoseconds since the Unix epoch.
            stop: The same.

        Raises:
            TensormeterError: No answer, or an error.
        """
        try:
            found = self._ask(None, start, stop, self._most)
        except ApiError as error:
            if error.code != _TOO_MANY:
                raise
        else:
            yield from found
            return
        for process in processes():
            yield from self.read_process(process, start, stop)

    def read_process(self, process: str, start: int, stop: int) -> Iterator[Block]:
        """What one process has; see `read`.

        A stretch of time with too much is halved. The server looks at points chunk by chunk: where no shorter stretch helps,
        more are asked for.
        """
        waiting = [(start, stop)]
        while waiting:
            first, last = waiting.pop()
            try:
                found = self._ask(process, first, last, self._most)
            except ApiError as error:
                short = last - first < _SHORTEST
                if error.code != _TOO_MANY or (short and self._most >= self._limit):
                    raise
                if short:
                    self._most = min(2 * self._most, self._limit)
                    waiting.append((first, last))
                else:
                    middle = (first + last) // 2
                    waiting += [(middle, last), (first, middle)]
            else:
                yield from found
