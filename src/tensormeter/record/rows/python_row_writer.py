"""The row writer in Python, for machines without a C compiler. `_row_writer.c` does the same."""

import struct
import threading
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tensormeter.record.dynamo import break_graph
from tensormeter.record.values.classify import EXACT_INT
from tensormeter.ring.layout import Items, Layout, item_header, items_in, row_bytes

if TYPE_CHECKING:
    from tensormeter.record.rows.lane import Lane, Writer

__all__ = ["PythonKeySets", "PythonRowWriter"]

_INT64: Final = 1 << 63
_MOST_SEEN: Final = 4096


class PythonKeySets:
    """The combinations of names and codes that have layouts. All lanes of a ring share it."""

    def __init__(
        self,
        *,
        names: list[object],
        numbers: dict[str, int],
        add_layout: Callable[[tuple[str, ...], str], int],
        first: int,
        few: int,
        frequent: int,
    ) -> None:
        """
        Args:
            names: Names of plain gauges by number. Not needed here.
            numbers: Numbers of plain gauges by name.
            add_layout: Function that adds a layout for names and codes. It returns the layout's number, or 0 if there is none.
            first: Number of layouts that are added for the first row with their names.
            few: Maximum number of columns of these layouts.
            frequent: Number of rows after which their names get a layout.
        """
        del names
        self.numbers = numbers
        self._add_layout = add_layout
        self._first = first
        self._few = few
        self._frequent = frequent
        self._layouts: dict[tuple[tuple[str, ...], str], int] = {}
        self._seen: dict[tuple[tuple[str, ...], str], int] = {}

    def find(self, names: tuple[str, ...], codes: str) -> int:
        """Return the number of the layout for a row, or 0 if it has none. Add a layout if the row's names are frequent."""
        key = names, codes
        layout = self._layouts.get(key, 0)
        if layout or not self._wants_layout(key):
            return layout
        layout = self._add_layout(names, codes)
        if layout:
            self._layouts[key] = layout
        else:
            self._first = 0
        return layout

    def _wants_layout(self, key: tuple[tuple[str, ...], str]) -> bool:
        if len(self._layouts) < self._first and len(key[0]) <= self._few:
            return True
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        seen = self._seen.get(key, 0) + 1
        self._seen[key] = seen % self._frequent
        return seen >= self._frequent


class PythonRowWriter:
    """A `RowWriter` in Python. For each combination of names with a layout, it has a generated writer (see `Lane.make_writer`)."""

    def __init__(
        self,
        lane: "Lane",
        sets: PythonKeySets,
        fallback: "Writer",
        on_full: Callable[[int], None],
        last_step: "array[int]",
    ) -> None:
        """See `Lane.make_row_writer`."""
        self.direct = True
        self._lane = lane
        self._owner = lane.owner
        self._sets = sets
        self._fallback = fallback
        self._on_full = on_full
        self._last_step = last_step
        self._writers: dict[tuple[str, ...], Writer] = {}

    def __call__(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        *,
        every: int | None = None,
        reduce: str | None = None,
    ) -> None:
        """Write a row, or call `fallback`."""
        if self.direct and type(values) is dict:
            try:
                writer = self._writers.get(tuple(values))
            except Exception:  # the comparison of a key of another type may raise anything
                writer = None
            if writer is not None:
                writer(values, step, every=every, reduce=reduce)
                return
        self._write_or_fall_back(values, step, every=every, reduce=reduce)

    def _write_or_fall_back(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        *,
        every: int | None = None,
        reduce: str | None = None,
    ) -> None:
        given = self._last_step[0] + 1 if step is None else step
        if (
            not self.direct
            or every is not None
            or reduce is not None
            or type(values) is not dict
            or type(given) is not int
            or not -_INT64 <= given < _INT64
            or not self.write(values, given)
        ):
            self._fallback(values, step, every=every, reduce=reduce)

    def write(self, values: dict[str, Any], step: int) -> bool:
        """See `RowWriter.write`."""
        lane, numbers = self._lane, self._sets.numbers
        if lane.is_closed or not values or (self._owner is not None and threading.get_ident() != self._owner):
            return False
        names, row = tuple(values), tuple(values.values())
        codes = _codes(row)
        if codes is None or len(codes) != len(names):
            return False
        for name in names:
            if type(name) is not str or name not in numbers:
                return False
        most = items_in(lane.most_bytes)
        layout = self._sets.find(names, codes) if row_bytes(len(names)) <= lane.most_bytes else 0
        if layout:
            if names not in self._writers:
                kinds = "".join(
                    "i" if type(value) is int and code == "d" else code for value, code in zip(row, codes, strict=True)
                )
                columns = Layout.of_gauges(layout, names, codes)
                self._writers[names] = lane.make_writer(columns, kinds, self._write_or_fall_back, self._last_step)
            done = lane.write_row(layout, struct.pack(f"<{codes}", *row), step) is not None
            if not done:
                return self._drop(len(names))
            self._last_step[0] = step
            return True
        for start in range(0, len(names), most):
            part = slice(start, start + most)
            if not self._write_items(names[part], codes[part], row[part], step):
                return self._drop(len(names) - start)
            self._last_step[0] = step
        return True

    def _write_items(self, names: Sequence[str], codes: str, row: Sequence[float], step: int) -> bool:
        numbers = self._sets.numbers
        headers = tuple(item_header(numbers[name], code) for name, code in zip(names, codes, strict=True))
        return self._lane.write_words(Items(headers), struct.pack(f"<{codes}", *row), step) is not None

    def _drop(self, values: int) -> bool:
        if self._lane.is_closed:
            return False
        self._on_full(values)
        return True


def _codes(row: Sequence[Any]) -> str | None:
    """Return the codes of numbers; None if there are other values."""
    codes = []
    for value in row:
        kind = type(value)
        if kind is float or (kind is int and -EXACT_INT <= value <= EXACT_INT):
            codes.append("d")
        elif kind is int and -_INT64 <= value < _INT64:
            codes.append("q")
        else:
            return None
    return "".join(codes)


break_graph(PythonRowWriter.__call__)
