"""Lanes, and the writers that fill them. A lane is one thread's part of the ring.

Nanoseconds matter here. A lane therefore has a row writer in C (`_row_writer.c`), which writes rows of numbers with any
combination of known names. Each stream of an instrument has another writer, which is specialized for this stream (`_writer.c`).
If the C code could not be compiled, a writer is generated in Python for each combination of keys and types (see also
`python_row_writer`). The generated code contains names and offsets as constants, and writes a row with one `struct` call.
A writer calls `fallback` if the keys or types are unexpected, if the lane has no room, or if another thread calls it.

A lane belongs to one thread (except the last lane, see `Recorder`), so nothing here takes a lock.
A signal handler that logs may interrupt a log call on the same lane. A writer therefore claims the space for a row before it
writes the row. CPython runs no signal handler between the claim and the end of the write, because this part of the code
contains no backward jump, and no call other than the C function that writes. `Lane.make_room` follows the same rule.
"""

import struct
import sys
import threading
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from time import monotonic, time_ns
from types import CodeType
from typing import Any, Final, Protocol

from tensormeter.record.dynamo import break_graph
from tensormeter.record.histogram.counting import DeviceTables
from tensormeter.record.histogram.pooling import Pools
from tensormeter.record.log_timing import LogTiming
from tensormeter.record.reduction.reduction import Reductions
from tensormeter.record.rows.python_row_writer import PythonKeySets, PythonRowWriter
from tensormeter.record.values.classify import EXACT_INT
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import (
    ITEM_STREAM_SHIFT,
    ITEMS,
    ITEMS_UNSTEPPED,
    LANE_HEADER_BYTES,
    LAYOUT_BITS,
    PENDING,
    POSITION_SHIFT,
    SKIP,
    WRAP,
    Drop,
    LaneWord,
    LogPath,
)
from tensormeter.ring.layout import Items, Layout, row_bytes

try:
    from tensormeter.record.rows import _row_writer, _writer
except ImportError:
    _writer = _row_writer = None  # type: ignore[assignment]

__all__ = ["ABANDONED", "Lane", "RowWriter", "Writer", "make_key_sets", "native_writers"]

ABANDONED: Final = -1
"""Cursor limit of a lane that must not be written to, because the process is a forked child or the run has finished."""

_STRIDE: Final = 1 << 12
"""Maximum number of bytes that are written between two checks of the reader's position, and between two calls of `on_stride`.
This corresponds to 64 rows of four floats."""

_LARGEST_SHARE: Final = 2
"""Number by which a lane's size is divided to get the maximum size of a row of numbers. Longer rows are split."""

_OFTEN: Final = 0.05
"""Target interval between two checks in seconds. If checks are more frequent, more bytes are written between them. If rows are
written at longer intervals than this, each row causes a check."""


class Writer(Protocol):
    """A function that writes one row. It never blocks, and never raises because of invalid `values`."""

    def __call__(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        *,
        every: int | None = None,
        reduce: str | None = None,
    ) -> None: ...


class RowWriter(Writer, Protocol):
    """A writer for rows of numbers with any combination of names.

    Attributes:
        direct: Whether calls may write rows. If not, all calls use `fallback`.
    """

    direct: bool

    def write(self, values: dict[str, Any], step: int) -> bool:
        """Write a row, or count its values as dropped if the lane has no room.

        Returns:
            False if nothing was done, because the values are not plain numbers whose names are known, the lane is closed, or
            another thread must write to it.
        """
        ...


class Lane:
    """The writing side of a lane.

    Attributes:
        cursor: ``[offset, limit, mark]``, shared by all writers of the lane: the offset of the next row in the file, the end of
            the space that rows may use without a call of `make_room`, and the mark of the next row without its layout.
        size: Space for rows in bytes. Once the reader has read all rows, a row of up to half this size always fits.
        row_writer: Writer for rows of numbers; None until the first row.
        writers: Writers by an instrument's stream and kind.
        device_writers: Writers for rows with device values, by key names in logging order (see `device_rows`).
        owner: Identifier of the only thread that may write. None for the shared lane.
        reductions: Incomplete reductions of values that the lane's thread has logged.
        pools: Incomplete pools of distributions that the lane's thread has logged.
    """

    def __init__(
        self, ring: RingFile, index: int, owner: int | None, on_stride: Callable[[], None], tables: DeviceTables
    ) -> None:
        """
        Args:
            ring: Ring that this process has created.
            index: Index of the lane, starting from 0.
            owner: Identifier of the only thread that may write. None if callers hold a lock while they write.
            on_stride: Callback for slower checks. If rows are at least 50 ms apart, each row calls it. If rows are more
                frequent, it is called less often, but at least once per 4 KiB of rows.
            tables: Object that counts distributions on devices.
        """
        header, self.size = ring.lanes[index]
        self._start = header + LANE_HEADER_BYTES
        self._end = self._start + self.size
        self._header = header >> 3
        self._tail = self._header + LaneWord.TAIL
        self._buffer = ring.buffer
        self._words = ring.words
        self._durations = ring.log_durations_offset(LogPath.DIRECT)
        self._cost = LogTiming(ring, LogPath.DIRECT)
        self._on_stride = on_stride
        self._stride = 0  # bytes between two checks
        self._looked = 0.0
        self._lap = 0  # position of the lane's start in this lap
        self.cursor = array("q", [self._start, self._start, 0])
        self.owner = owner
        self.row_writer: RowWriter | None = None
        self.writers: dict[tuple[object, str], Writer] = {}
        self.device_writers: dict[tuple[str, ...], Callable[[Any, int], bool]] = {}
        self.reductions = Reductions()
        self.pools = Pools(tables)

    def lend(self, owner: int) -> None:
        """Assign the lane to another thread after its previous thread has ended."""
        self.owner = owner
        self.writers.clear()  # existing writers accept only the previous thread
        self.row_writer = None

    @property
    def position(self) -> int:
        """Total number of bytes written to the lane so far, over all laps."""
        return self._lap + self.cursor[0] - self._start

    @property
    def is_closed(self) -> bool:
        """Whether the lane no longer accepts rows."""
        return self.cursor[1] == ABANDONED

    def make_room(self, size: int) -> bool:
        """Raise the cursor's limit, so that a row of `size` bytes fits.

        Returns:
            False if the lane is closed, or if it is full because the reader has fallen behind.
        """
        now = monotonic()
        # If a signal handler logs during this code, only the time of the next check changes.
        if now - self._looked >= _OFTEN:
            self._stride = 0
        elif self._stride < _STRIDE:
            self._stride = 2 * self._stride or size
            self._stride = min(self._stride, _STRIDE)
        self._looked = now
        extended = self._extend(size)
        self._on_stride()  # even if the lane is full, because there may be no reader
        return extended

    def _extend(self, size: int) -> bool:
        # This code contains no call and no loop, so a signal handler, which may log or raise, runs only before or after it.
        cursor, words = self.cursor, self._words
        if cursor[1] == ABANDONED:
            return False
        offset = cursor[0]
        free = self.size - (self._lap + offset - self._start - words[self._tail])
        room = self._end - offset
        if room < size <= self.size and room <= free:  # the row may still not fit until the reader advances
            if room:
                words[offset >> 3] = cursor[2] | WRAP
            self._lap += self.size
            cursor[0] = offset = self._start
            cursor[2] += room << POSITION_SHIFT
            free -= room
            room = self.size
        if size > room or size > free:
            cursor[1] = offset
            return False
        stride = size if size > self._stride else self._stride  # noqa: FURB136 - no call, see above
        room = room if room < free else free  # noqa: FURB136
        cursor[1] = offset + (room if room < stride else stride)  # noqa: FURB136
        return True

    def count(self, reason: Drop, number: int = 1) -> None:
        """Count points that could not be recorded."""
        self._words[self._header + LaneWord.DROPS + reason] += number

    def close(self) -> None:
        """Stop writing, and store the position after the last row."""
        self.cursor[1] = ABANDONED
        self._words[self._header + LaneWord.HEAD] = self.position

    def abandon(self) -> None:
        """In a forked child process, make all existing writers call their fallback. The lane belongs to the parent process."""
        self.cursor[1] = ABANDONED

    def write_pending(self, columns: Layout | Items, codes: str, values: Sequence[float], step: int) -> int | None:
        """Write a row whose last columns have the code `D` and hold PENDING.

        Args:
            columns: Layout or columns of the row.
            codes: Codes of all columns.
            values: Values of the first columns.
            step: Step of the row.

        Returns:
            Index of the first word with PENDING, or None if the lane has no room.
        """
        pending = [PENDING] * (len(codes) - len(values))
        words = struct.pack(f"<{codes.replace('D', 'q')}", *values, *pending)
        word = self.write_words(columns, words, step)
        return None if word is None else word + len(values)

    def write_words(self, columns: Layout | Items, words: bytes, step: int) -> int | None:
        """Write a row. The argument `words` contains the bytes of its values.

        Returns:
            Index of the first value's word, or None if the lane has no room.
        """
        if isinstance(columns, Layout):
            return self.write_row(columns.id, words, step)
        headers = columns.headers
        described = struct.pack(f"<{len(headers) + 1}q", len(headers) << ITEM_STREAM_SHIFT | len(words) >> 3, *headers)
        word = self.write_row(ITEMS if columns.stepped else ITEMS_UNSTEPPED, described + words, step)
        return None if word is None else word + len(headers) + 1

    def write_row(self, layout: int, words: bytes, step: int) -> int | None:
        """Write a row, given the number of its layout. See `write_words`."""
        size = row_bytes(len(words) >> 3)
        row = _row(len(words))
        now = time_ns()
        while (offset := self.cursor[0]) + size > self.cursor[1]:
            if not self.make_room(size):
                return None
        mark = self.cursor[2] | layout
        self.cursor[0] = offset + size
        self.cursor[2] += size << POSITION_SHIFT
        try:
            row.pack_into(self._buffer, offset, mark, now, step, words, mark)
        except BaseException:
            self._cover(offset, size, mark)  # even a complete row, because its pending values would never arrive
            raise
        return (offset >> 3) + 3

    @property
    def most_bytes(self) -> int:
        """Maximum size of a row of numbers in bytes. It fits once the reader has read all earlier rows."""
        return self.size // _LARGEST_SHARE

    def make_row_writer(
        self,
        sets: "PythonKeySets | _row_writer.KeySets",
        fallback: Writer,
        on_full: Callable[[int], None],
        last_step: "array[int]",
    ) -> RowWriter:
        """Make the lane's row writer.

        Args:
            sets: Combinations of names that have layouts. It must come from `make_key_sets`.
            fallback: Function that handles calls with unexpected keys, types or arguments. It receives the same arguments.
            on_full: Function that counts values that did not fit into the lane.
            last_step: Array that contains only the step of the last row, as int64.
        """
        if isinstance(sets, PythonKeySets):
            return PythonRowWriter(self, sets, fallback, on_full, last_step)
        writer: RowWriter = _row_writer.RowWriter(
            sets=sets,
            ring=self._buffer,
            cursor=self.cursor,
            last_step=last_step,
            most_bytes=self.most_bytes,
            owner=self.owner,
            make_room=self.make_room,
            on_full=on_full,
            fallback=fallback,
            durations=self._durations,
        )
        break_graph(writer)
        return writer

    def make_writer(self, layout: Layout, kinds: str, fallback: Writer, last_step: "array[int]") -> Writer:
        """Make a function that writes rows with the given layout.

        Args:
            layout: Layout without `D` columns.
            kinds: Kind of each column: `d` (a float), `i` (an int that is exact as float64) or `q` (a 64-bit int).
            fallback: Function that handles calls with unexpected keys, types or arguments. It receives the same arguments.
            last_step: Array that contains only the step of the last row, as int64.
        """
        if not native_writers():
            return self._generate_writer(layout, kinds, fallback, last_step)
        writer: Writer = _writer.Writer(
            ring=self._buffer,
            cursor=self.cursor,
            last_step=last_step,
            keys=tuple(map(sys.intern, layout.names)),
            codes=layout.codes.encode(),
            layout=layout.id,
            advance=layout.row_bytes << POSITION_SHIFT,
            owner=self.owner,
            make_room=self.make_room,
            fallback=fallback,
            durations=self._durations,
        )
        break_graph(writer)
        return writer

    def _generate_writer(self, layout: Layout, kinds: str, fallback: Writer, last_step: "array[int]") -> Writer:
        names = [f"v{i}" for i in range(len(layout.names))]
        fetch = "; ".join(f"{name} = values[{key!r}]" for name, key in zip(names, layout.names, strict=True)) or "pass"
        check = " or ".join(_CHECKS[kind].format(name) for name, kind in zip(names, kinds, strict=True)) or "False"
        source = _WRITER.format(
            count=len(names),
            wrong_thread="" if self.owner is None else " or get_ident() != owner",
            fetch=fetch,
            check=check,
            values="".join(f"{name}, " for name in names),
        )
        scope = {
            "buffer": self._buffer,
            "count": self._cost.add,
            "cursor": self.cursor,
            "fallback": fallback,
            "get_ident": threading.get_ident,
            "last_step": last_step,
            "make_room": self.make_room,
            "layout_id": layout.id,
            "owner": self.owner,
            "pack_into": struct.Struct(f"<qqq{layout.codes}q").pack_into,
            "StructError": struct.error,
            "size": layout.row_bytes,
            "advance": layout.row_bytes << POSITION_SHIFT,
            "skip": self._skip,
            "time_ns": time_ns,
        }
        arguments = ", ".join(scope)
        body = "".join(f"    {line}\n" for line in source.splitlines())
        namespace: dict[str, Any] = {}
        exec(_compiled(f"def bind({arguments}):\n{body}    return log\n"), namespace)  # noqa: S102 - keys enter by repr() only
        writer: Writer = namespace["bind"](**scope)
        break_graph(writer)
        return writer

    def _skip(self, offset: int, size: int, mark: int) -> None:
        """Write a SKIP mark over a claimed row after its write has failed, unless the row is complete."""
        if self._words[(offset + size >> 3) - 1] != mark:
            self._cover(offset, size, mark)

    def _cover(self, offset: int, size: int, mark: int) -> None:
        """Write a SKIP mark over a row."""
        self._words[(offset >> 3) + 1] = size
        self._words[offset >> 3] = mark >> LAYOUT_BITS << LAYOUT_BITS | SKIP  # last, because this publishes the mark


def make_key_sets(
    names: list[object],
    numbers: dict[str, int],
    add_layout: Callable[[tuple[str, ...], str], int],
    *,
    first: int,
    few: int,
    frequent: int,
) -> "PythonKeySets | _row_writer.KeySets":
    """Make an object that knows which combinations of names have layouts, for `Lane.make_row_writer`.

    Args:
        names: Names of plain gauges by number; None for the numbers of other streams.
        numbers: Numbers of plain gauges by name.
        add_layout: Function that adds a layout for names and codes. It returns the layout's number, or 0 if there is none.
        first: Number of layouts that are added for the first row with their names.
        few: Maximum number of columns of these layouts.
        frequent: Number of rows after which their names get a layout.
    """
    make = _row_writer.KeySets if native_writers() else PythonKeySets
    return make(names=names, numbers=numbers, add_layout=add_layout, first=first, few=few, frequent=frequent)


def native_writers() -> bool:
    """Return whether writers use the C code. It must be compiled, and the machine must be little-endian, as the ring is."""
    return _writer is not None and sys.byteorder == "little"


@lru_cache(maxsize=1024)
def _row(content: int) -> struct.Struct:
    """Return the `struct` format of a row whose values take `content` bytes."""
    return struct.Struct(f"<qqq{content}sq")


@lru_cache(maxsize=1024)
def _compiled(source: str) -> CodeType:
    """Compile a writer's source code, which takes half a millisecond. Lanes and streams with equal source share the result."""
    return compile(source, __file__, "exec")


_CHECKS: Final = {
    "d": "{0}.__class__ is not float",
    "i": f"{{0}}.__class__ is not int or not -{EXACT_INT} <= {{0}} <= {EXACT_INT}",
    "q": "{0}.__class__ is not int or not -9223372036854775808 <= {0} <= 9223372036854775807",
}

# Writes one row. The order matters: read the time, claim the space, write the row. The module's docstring explains why. (Leaving
# the loop is not a backward jump.)
# The lowest bits of the time select about one call in 64 for timing. A signal handler may run then, as the row is complete.
# Only a plain dict is accepted, because `values[key]` would add an entry to a defaultdict.
_WRITER: Final = """\
def log(values, step=None, *, every=None, reduce=None):
    now = time_ns()
    if values.__class__ is not dict or len(values) != {count} or every is not None{wrong_thread}:
        return fallback(values, step, every=every, reduce=reduce)
    if step.__class__ is not int:
        if step is not None:
            return fallback(values, step)
        step = last_step[0] + 1
    try:
        {fetch}
    except KeyError:
        return fallback(values, step)
    if {check}:
        return fallback(values, step)
    offset = cursor[0]
    end = offset + size
    while end > cursor[1]:
        if not make_room(size):
            return fallback(values, step)
        offset = cursor[0]
        end = offset + size
    base = cursor[2]
    mark = base | layout_id
    cursor[0] = end
    cursor[2] = base + advance
    try:
        pack_into(buffer, offset, mark, now, step, {values}mark)
    except StructError:  # the step does not fit
        skip(offset, size, mark)
        return fallback(values, step)
    except BaseException:
        skip(offset, size, mark)
        raise
    last_step[0] = step
    if not now & 63:
        count(time_ns() - now)
"""
