"""Every point of a metric, exactly as it was logged, piece by piece."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.client.connection import ApiError, Connection
from tensormeter.client.series import take

__all__ = ["BLOCK_POINTS", "BlockReader", "PointBlock"]

BLOCK_POINTS: Final = 500_000
"""Points that one request looks at, at most: some 12 MB on both sides."""

_TOO_MANY: Final = "too_many_points"

_MOST: Final = 20_000_000
"""The server's own limit."""

_SHORTEST: Final = 1_000_000_000
"""Nanoseconds: a stretch that is shorter is not halved."""


@dataclass(frozen=True, eq=False)
class PointBlock:
    """Some of the points of one series, by ascending time.

    Attributes:
        process: Id of the process.
        attempt: Which attempt at the run it belongs to.
        metric: Name.
        kind: "gauge" or "sum".
        attributes: Of the metric.
        time: int64, shape (n,): nanoseconds since the Unix epoch.
        step: int64, shape (n,): the step that was logged at that time; 0 where there was none.
        stepped: bool, shape (n,): where there was one.
        value: float64, shape (n,): bit for bit; integers outside ±2^53 are rounded.
        integer: int64, shape (n,): the exact values where `is_integer`; elsewhere 0.
        is_integer: bool, shape (n,): which values were logged as integers.
    """

    process: str
    attempt: int
    metric: str
    kind: str
    attributes: Mapping[str, Any]
    time: NDArray[np.int64] = field(repr=False)
    step: NDArray[np.int64] = field(repr=False)
    stepped: NDArray[np.bool_] = field(repr=False)
    value: NDArray[np.float64] = field(repr=False)
    integer: NDArray[np.int64] = field(repr=False)
    is_integer: NDArray[np.bool_] = field(repr=False)

    def __len__(self) -> int:
        return len(self.time)


class BlockReader:
    """Reads one metric of one run. For one thread."""

    def __init__(self, connection: Connection, run: tuple[str, str], metric: str, most: int = BLOCK_POINTS) -> None:
        """Create a reader.

        Args:
            connection: To the server.
            run: Project and id.
            metric: Name of a gauge or sum.
            most: Points that one request looks at, at most.
        """
        self._connection = connection
        self._run = run
        self._metric = metric
        self._most = most

    def read(self, processes: Callable[[], Sequence[str]], start: int, stop: int) -> Iterator[PointBlock]:
        """Points with start <= time < stop: of all processes at once if they are few, else process by process.

        Args:
            processes: Gives the ids of all processes; called if it has to be.
            start: Nanoseconds since the Unix epoch.
            stop: The same.

        Raises:
            TensormeterError: No answer, or an error.
        """
        try:
            found = self._ask(None, start, stop)
        except ApiError as error:
            if error.code != _TOO_MANY:
                raise
        else:
            yield from found
            return
        for process in processes():
            yield from self.read_process(process, start, stop)

    def read_process(self, process: str, start: int, stop: int) -> Iterator[PointBlock]:
        """Points of one process; see `read`.

        A stretch of time with too many points (steps at the same times among them) is halved. The server looks at points
        chunk by chunk: where no shorter stretch helps, more are asked for.
        """
        waiting = [(start, stop)]
        while waiting:
            first, last = waiting.pop()
            try:
                found = self._ask(process, first, last)
            except ApiError as error:
                short = last - first < _SHORTEST
                if error.code != _TOO_MANY or (short and self._most >= _MOST):
                    raise
                if short:
                    self._most = min(2 * self._most, _MOST)
                    waiting.append((first, last))
                else:
                    middle = (first + last) // 2
                    waiting += [(middle, last), (first, middle)]
            else:
                yield from found

    def _ask(self, process: str | None, start: int, stop: int) -> list[PointBlock]:
        project, run_id = self._run
        header, data = self._connection.columns(
            "runs", run_id, "series",
            project=project, metric=self._metric, x="time", process=process, start=start, stop=stop, limit=self._most,
            attempt="all",
        )  # fmt: skip
        return [_block(self._metric, one, data) for one in header["series"]]


def _block(metric: str, one: Mapping[str, Any], data: memoryview) -> PointBlock:
    time, words = take(data, one["time"]), take(data, one["value"])
    n = len(time)
    is_integer = take(data, one["integers"]).astype(np.bool_) if "integers" in one else np.zeros(n, np.bool_)
    integer = np.where(is_integer, words, 0)
    value = np.where(is_integer, words.astype(np.float64), words.view(np.float64))
    if not is_integer.any():
        value = words.view(np.float64)  # every bit of every NaN
    step = take(data, one["step"])
    stepped = take(data, one["stepped"]).astype(np.bool_) if "stepped" in one else np.ones(n, np.bool_)
    return PointBlock(
        one["process"],
        one["attempt"],
        metric,
        one["kind"],
        one["attributes"],
        time,
        step,
        stepped,
        value,
        integer,
        is_integer,
    )
