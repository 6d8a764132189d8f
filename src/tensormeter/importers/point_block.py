"""A block of rows with numbers as text, which become columns of points."""

from typing import Final

import numpy as np

from tensormeter.importers.run_requests import EXACT, MOST_INTEGER, Numbers, RunRequests

__all__ = ["Column", "PointBlock", "numbers_of"]

_MOST_VALUES: Final = 50_000
_MOST_ROWS: Final = 50_000
_INTEGER: Final = b"0123456789-"


class Column:
    """Numbers of one metric in a block: the row of each, and its text."""

    __slots__ = ("name", "rows", "texts")

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: list[int] = []
        self.texts: list[bytes] = []


class PointBlock:
    """Rows of one process. Its points are passed on whenever 50,000 have come together. Not thread-safe.

    Attributes:
        columns: Columns by name. Callers may append to them; each row has an index from 0, which is `row`.
        row: Index of the row that `end_row` completes next.
    """

    def __init__(self, requests: RunRequests, *, has_steps: bool, unit: str = "") -> None:
        """
        Args:
            requests: Receiver of the points.
            has_steps: Whether the rows have steps.
            unit: UCUM unit of all metrics, or "".
        """
        self.columns: dict[str, Column] = {}
        self.row = 0
        self._requests = requests
        self._has_steps = has_steps
        self._unit = unit
        self._steps: list[int] = []
        self._times: list[int] = []
        self._values = 0

    def column(self, name: str) -> Column:
        """Return the column of a metric, which is added the first time."""
        column = self.columns.get(name)
        if column is None:
            column = self.columns[name] = Column(name)
        return column

    def end_row(self, step: int, time: int, values: int) -> None:
        """Complete a row.

        Args:
            step: Step of the row; ignored if the rows have none.
            time: Time in nanoseconds since the Unix epoch.
            values: Number of values that were appended to the columns.
        """
        self._steps.append(step)
        self._times.append(time)
        self.row += 1
        self._values += values
        if self._values >= _MOST_VALUES or self.row >= _MOST_ROWS:
            self.flush()

    def flush(self) -> None:
        """Pass on the points."""
        if self.row:
            every_row = list(range(self.row))
            times = np.array(self._times, np.int64)
            if self._has_steps:
                times = self._requests.place(np.array(self._steps, np.int64), times)
            for column in self.columns.values():
                if column.rows:
                    values = self._numbers(column)
                    chosen = times if column.rows == every_row else times[column.rows]
                    if values.dtype.kind == "f" and (np.abs(values) > EXACT).any():
                        integers = [_integer_of(text) for text in column.texts]
                        is_integer = np.array([number is not None for number in integers], bool)
                        exact = np.array([number for number in integers if number is not None], np.int64)
                        self._requests.placed_points(column.name, chosen[is_integer], exact, self._unit)
                        chosen, values = chosen[~is_integer], values[~is_integer]
                    self._requests.placed_points(column.name, chosen, values, self._unit)
                    column.rows, column.texts = [], []
        self._steps, self._times, self._values, self.row = [], [], 0, 0

    def _numbers(self, column: Column) -> Numbers:
        """Convert the numbers of a column. Remove those that cannot be read, and their rows."""
        try:
            return numbers_of(column.texts)
        except ValueError:
            chosen = [index for index, text in enumerate(column.texts) if _is_number(text)]
            self._requests.left_out("numbers that cannot be read", len(column.texts) - len(chosen))
            column.rows = [column.rows[index] for index in chosen]
            column.texts = [column.texts[index] for index in chosen]
            return numbers_of(column.texts)


def numbers_of(texts: list[bytes]) -> Numbers:
    """Convert numbers as text, such as ``b"1.5e-3"``, to an array: int64 if all are integers, otherwise float64.

    Raises:
        ValueError: A text is not a number.
    """
    if not b"".join(texts).translate(None, _INTEGER):
        try:
            return np.array(list(map(int, texts)), np.int64)
        except (OverflowError, ValueError):  # beyond 64 bits, or signs within the digits
            pass
    return np.array(list(map(float, texts)), np.float64)


def _integer_of(text: bytes) -> int | None:
    """Return an integer of 64 bits; None for other numbers."""
    try:
        number = int(text)
    except ValueError:
        return None
    return number if abs(number) <= MOST_INTEGER else None


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
