"""The layouts of the rows that a process has logged. Each layout is published once, in the ring's dictionary.

The first combinations of few columns get a layout, and later only frequent ones do. The rows of all other combinations describe
their own columns (see `Items`). Programs may therefore log any number of combinations.
"""

import itertools
import threading
from collections.abc import Hashable, Sequence
from typing import Final

from tensormeter.record.rows.stream_numbers import StreamNumbers
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import MAX_LAYOUT
from tensormeter.ring.histogram_buckets import SPARSE
from tensormeter.ring.layout import Column, Items, Layout, Stream, item_header

__all__ = ["FEW_COLUMNS", "FIRST_LAYOUTS", "FREQUENT", "Layouts"]

FIRST_LAYOUTS: Final = 64
"""Number of layouts that are added for the first row with their columns."""

FEW_COLUMNS: Final = 256
"""Maximum number of columns of these layouts. Longer rows have to be frequent."""

FREQUENT: Final = 16
"""Number of rows with the same columns after which these columns get a layout."""

_MOST_SEEN: Final = 4096
"""Maximum number of combinations of columns whose rows are counted at the same time."""

_MOST_ROW_LAYOUTS: Final = 4096
"""Maximum number of layouts of logged rows."""

_MOST_COLUMNS: Final = 1 << 20
"""Maximum number of columns in all layouts of logged rows, which bounds their memory."""

_MOST_STREAM_LAYOUTS: Final = MAX_LAYOUT - 2 * _MOST_ROW_LAYOUTS
"""Maximum number of layouts of instruments' streams."""


_NOT_FOR_INSTRUMENTS: Final = 1 / 4
"""Share of the allowed streams that is reserved for logged rows."""


class Layouts:
    """Layouts, indexed by their contents. Any thread and any signal handler may call the methods.

    The `of_*` methods return a layout, or the columns of a row that describes itself. They return None only if there are too
    many streams, or if the ring's dictionary cannot grow.
    """

    def __init__(self, ring: RingFile, numbers: StreamNumbers) -> None:
        """
        Args:
            ring: Ring that this process has created.
            numbers: Numbers of the ring's streams.
        """
        self._ring = ring
        self._numbers = numbers
        self._ids = itertools.count(1)
        self._columns = 0
        self._rows: dict[tuple[Column, ...], Layout] = {}
        self._streams: dict[tuple[Hashable, str], Layout] = {}
        self._seen: dict[tuple[Column, ...], int] = {}
        self._claims = threading.RLock()  # reentrant, because a signal handler may log

    def __len__(self) -> int:
        """Number of layouts of logged rows."""
        return len(self._rows)

    def of_gauges(self, names: Sequence[str], codes: str) -> Layout | Items | None:
        """Return the layout for a row of plain gauges."""
        self._numbers.add_names(names)
        return self.of_columns([Column(Stream(name), code) for name, code in zip(names, codes, strict=True)])

    def of_columns(self, columns: Sequence[Column]) -> Layout | Items | None:
        """Return the layout for a row with arbitrary columns."""
        key = tuple(columns)
        return self._rows.get(key) or (self._is_frequent(key) and self.add(key)) or self.items(key)

    def items(self, columns: Sequence[Column]) -> Items | None:
        """Return the columns of a row that describes itself."""
        headers = []
        for column in columns:
            number = self._numbers.of(column.stream)
            if number is None:
                return None
            headers.append(item_header(number, column.code, column.words))
        return Items(tuple(headers))

    def of_stream(self, writer: Hashable, stream: Stream, code: str) -> Layout | Items | None:
        """Return the layout for measurements of an instrument. Measurements have no step.

        The argument `writer` identifies the stream (see `StreamNumbers.of`).
        """
        layout = self._streams.get((writer, code))
        if layout is not None:
            return layout
        number = self._numbers.of(stream, writer) if self._numbers.left > _NOT_FOR_INSTRUMENTS else None
        if number is None:
            return None
        if len(self._streams) < _MOST_STREAM_LAYOUTS:
            layout = self._publish((Column(stream, code),), [number], stepped=False)
            if layout is not None:
                self._streams[writer, code] = layout
        return layout or Items((item_header(number, code),), stepped=False)

    def add(self, columns: tuple[Column, ...]) -> Layout | None:
        """Add a layout for rows with a step, unless there are too many or it cannot be published."""
        if len(self._rows) >= _MOST_ROW_LAYOUTS or self._columns + len(columns) > _MOST_COLUMNS:
            return None
        numbers = [self._numbers.of(column.stream) for column in columns]
        known = [number for number in numbers if number is not None]
        layout = self._publish(columns, known, stepped=True) if len(known) == len(numbers) else None
        if layout is not None:
            self._rows[columns] = layout
            self._columns += len(columns)
        return layout

    def _is_frequent(self, columns: tuple[Column, ...]) -> bool:
        """Count a row, and return whether its columns should have a layout."""
        if any(column.code == SPARSE for column in columns):
            return False  # the number of words differs from row to row
        if len(self._rows) < FIRST_LAYOUTS and len(columns) <= FEW_COLUMNS:
            return True
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        seen = self._seen[columns] = self._seen.get(columns, 0) + 1
        return seen >= FREQUENT

    def _publish(self, columns: tuple[Column, ...], numbers: Sequence[int], *, stepped: bool) -> Layout | None:
        with self._claims:
            number = next(self._ids)
            layout = Layout(number, columns, stepped)
            return layout if number <= MAX_LAYOUT and self._ring.add_layout(layout, numbers) else None
