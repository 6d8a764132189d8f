"""Blocks of scalars from event files, which become columns of points."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.importers.run_requests import RunRequests

__all__ = ["ScalarBlock", "ScalarColumn", "wall_nanoseconds"]

_MOST_VALUES: Final = 25_000
"""Number of values from which on they are passed on. Each needs a step of its time too, so a request has 50,000 points."""


class ScalarColumn:
    """Values of one tag in a block: the row of each, and its four bytes or its number."""

    __slots__ = ("name", "numbers", "packed", "rows", "rows_of_numbers")

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: list[int] = []
        self.packed: list[bytes] = []
        """Values in single precision, 4 bytes each, in the rows of `rows`."""
        self.rows_of_numbers: list[int] = []
        self.numbers: list[float] = []

    def take(self) -> tuple[list[int], NDArray[np.float64]]:
        """Return the rows and values, and forget them."""
        values = np.frombuffer(b"".join(self.packed), "<f4").astype(np.float64)
        rows, numbers = self.rows, np.array(self.numbers, np.float64)
        if len(numbers):
            rows, values = [*rows, *self.rows_of_numbers], np.concatenate((values, numbers))
            order = np.argsort(rows, kind="stable")
            rows, values = np.array(rows)[order].tolist(), values[order]
        self.rows, self.packed, self.rows_of_numbers, self.numbers = [], [], [], []
        return rows, values


class ScalarBlock:
    """Events with scalars, in the order of the files. Not thread-safe.

    Attributes:
        row: Index of the next event.
    """

    def __init__(self, requests: RunRequests) -> None:
        self.row = 0
        self._requests = requests
        self._columns: dict[str, ScalarColumn] = {}
        self._steps: list[int] = []
        self._times: list[float] = []

    def column(self, name: str) -> ScalarColumn:
        """Return the column of a tag, which is added the first time."""
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = ScalarColumn(name)
        return column

    def __len__(self) -> int:
        """Return the number of tags."""
        return len(self._columns)

    def end_row(self, step: int, wall_time: float) -> None:
        """Complete an event. `wall_time` is in seconds since the Unix epoch."""
        self._steps.append(step)
        self._times.append(wall_time)
        self.row += 1
        if self.row >= _MOST_VALUES:
            self.flush()

    def flush(self) -> None:
        """Pass on the points."""
        if self.row:
            times = self._requests.place(np.array(self._steps, np.int64), wall_nanoseconds(self._times))
            for column in self._columns.values():
                if column.rows or column.rows_of_numbers:
                    rows, values = column.take()
                    self._requests.placed_points(column.name, times[rows], values)
        self._steps, self._times, self.row = [], [], 0


def wall_nanoseconds(seconds: list[float]) -> NDArray[np.int64]:
    """Convert wall times to nanoseconds since the Unix epoch. Times that are not positive become the least valid one."""
    values = np.array(seconds, np.float64)
    valid = (values > 0) & (values < 9.2e9)
    return np.where(valid, np.round(np.where(valid, values, 0) * 1e9), 1).astype(np.int64)
