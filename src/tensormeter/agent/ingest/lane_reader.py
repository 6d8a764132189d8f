"""Reader for the rows in a lane of a ring.

NumPy finds and copies rows in stretches of consecutive rows with the same layout. Rows of instrument measurements all
have the same size, so they form one stretch even if the instruments alternate. The reader uses only the file, so the
writer may be dead.
"""

import contextlib
import platform
from dataclasses import dataclass, field
from functools import cached_property
from threading import Event
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.agent.ingest.item_rows import ITEM_LAYOUTS, ItemRows, decode_rows, row_words
from tensormeter.agent.ingest.row_form import RowForm
from tensormeter.agent.ingest.stream_table import StreamTable
from tensormeter.agent.spool.lane_cursor import Cursor
from tensormeter.ring.file import RingFile
from tensormeter.ring.format import (
    ITEMS,
    LANE_HEADER_BYTES,
    LAYOUT_BITS,
    LOST,
    MAX_LANES,
    PENDING,
    POSITION_SHIFT,
    SKIP,
    WRAP,
    EntryKind,
    HeaderWord,
    LaneWord,
    State,
)
from tensormeter.ring.layout import Layout, row_bytes

__all__ = ["LaneReader", "Layouts", "Rows"]

_STORES_IN_ORDER: Final = platform.machine() in ("x86_64", "AMD64", "i686")
_SETTLE: Final = 0.002
"""Seconds after which another core's stores are certainly visible; usually, a microsecond is enough."""

_MEASUREMENT_BYTES: Final = row_bytes(1)

_LAYOUT_MASK: Final = (1 << LAYOUT_BITS) - 1

_ROW_WORDS: Final = 4
"""Number of words in a row that are not values: two marks, the time and the step."""


@dataclass(frozen=True)
class Rows:
    """Consecutive rows with the same layout.

    Attributes:
        form: Form of the rows.
        times: uint64, shape (n,). Each time is unique in the process: a multiple of 64 ns plus the lane's index.
        steps: int64, shape (n,).
        words: Words of the values, int64, shape (n, form.words).
    """

    form: RowForm
    times: NDArray[np.uint64]
    steps: NDArray[np.int64]
    words: NDArray[np.int64]

    @property
    def layout(self) -> Layout:
        """Layout of the rows."""
        return self.form.layout

    @property
    def stepped(self) -> bool:
        """Whether the rows have a step."""
        return self.form.layout.stepped

    @property
    def points(self) -> int:
        """Number of points, including the steps."""
        return len(self.times) * (len(self.form.codes) + 1)

    def column(self, index: int) -> NDArray[np.float64] | NDArray[np.int64]:
        """Return a column, float64 or int64, of shape (n,), or of shape (n, words) for wider columns."""
        start, code = int(self.form.offsets[index]), self.form.codes[index]
        words = int(self.form.sizes[index])
        column = self.words[:, start] if words == 1 else self.words[:, start : start + words]
        column = np.ascontiguousarray(column)
        return column.view(np.float64) if code in "dD" else column

    @property
    def columns(self) -> list[NDArray[np.float64] | NDArray[np.int64]]:
        """All columns. Columns of distributions are always int64."""
        return [self.column(index) for index in range(len(self.form.codes))]

    @cached_property
    def lost_words(self) -> NDArray[np.bool_] | None:
        """Mask of the words that the device never finished, of shape (n, form.words); None if there are none."""
        if len(self.form.device_words) == 0:
            return None
        words = self.words[:, self.form.device_words]
        missing = (words == PENDING) | (words == LOST)
        if not missing.any():
            return None
        mask = np.zeros(self.words.shape, np.bool_)
        mask[:, self.form.device_words] = missing
        return mask

    def lost_in(self, index: int) -> NDArray[np.bool_] | None:
        """Return a mask of the rows in which the device never finished a column; None if there are none."""
        if self.lost_words is None:
            return None
        start = int(self.form.offsets[index])
        mask: NDArray[np.bool_] = np.logical_or.reduce(
            self.lost_words[:, start : start + int(self.form.sizes[index])], axis=1
        )
        return mask if mask.any() else None

    @property
    def lost(self) -> list[NDArray[np.bool_] | None]:
        """Result of `lost_in` for each column."""
        return [self.lost_in(index) for index in range(len(self.form.codes))]

    @property
    def lost_values(self) -> int:
        """Number of values that the device never finished."""
        if self.lost_words is None:
            return 0
        return sum(int(mask.sum()) for mask in self.lost if mask is not None)


@dataclass
class Layouts:
    """Layouts that a ring has published so far."""

    ring: RingFile
    metadata: dict[str, object] = field(default_factory=dict)
    measurements: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(1 << LAYOUT_BITS, np.bool_))
    """Whether the rows of each layout ID are instrument measurements: a single value of one word, without a step."""
    deferred: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(1 << LAYOUT_BITS, np.bool_))
    """Whether the rows of each layout ID are device measurements."""
    streams: StreamTable = field(default_factory=StreamTable)
    _known: dict[int, RowForm] = field(default_factory=dict)

    def refresh(self, *, unpublished: bool = False) -> None:
        """Read new entries from the ring. If `unpublished` is true, also read entries that the writer did not publish."""
        for kind, entry in self.ring.entries(unpublished=unpublished):
            if kind is EntryKind.METADATA:
                self.metadata = {**self.metadata, **entry}
                continue
            # An entry may be missing from a damaged dictionary. The rows with its streams or layout are then unreadable.
            with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):
                if kind is EntryKind.STREAMS:
                    self.streams.add(entry["first"], entry["streams"])
                elif kind is EntryKind.LAYOUT:
                    self._add(Layout.from_json(entry, self.streams))

    def _add(self, layout: Layout) -> None:
        form = RowForm(layout)
        if not layout.stepped and layout.row_bytes == _MEASUREMENT_BYTES:
            self.measurements[layout.id] = True
            self.deferred[layout.id] = layout.codes == "D"
        self._known[layout.id] = form

    def find(self, number: int, *, unpublished: bool = False) -> RowForm | None:
        """Return the form of the rows with the given layout ID; None if the dictionary has none. See also `refresh`."""
        if number not in self._known:
            self.refresh(unpublished=unpublished)
        return self._known.get(number)


class LaneReader:
    """Reader of one lane, starting at a cursor."""

    def __init__(self, layouts: Layouts, index: int, cursor: Cursor) -> None:
        ring = layouts.ring
        header, self._size = ring.lanes[index]
        self._start = header + LANE_HEADER_BYTES
        self._tail_word = (header >> 3) + LaneWord.TAIL
        self._index = index
        self._layouts = layouts
        self._buffer = ring.buffer
        self._words = ring.words
        self._head_word = (header >> 3) + LaneWord.HEAD
        self._end_word = (self._start + self._size) >> 3
        self.unreadable = 0
        """Number of points in skipped, unreadable rows, estimated from the size of the rows."""
        # The space just after the cursor may already have been freed, if it contained no rows.
        self.cursor = Cursor(max(cursor.position, self._words[self._tail_word]), cursor.last_time)

    def read(self, most: int, *, abandon_pending: bool) -> list[Rows | ItemRows]:
        """Copy complete rows, up to about `most` values, and move the cursor past them.

        The rows' space is freed only by `release`.

        Args:
            most: Number of values after which reading stops at the next row.
            abandon_pending: Whether the writer is gone. If so, rows with unfinished device values are read as well,
                because the device will never finish them, and unreadable rows are skipped.
        """
        batch: list[Rows | ItemRows] = []
        position = self.cursor.position
        while True:
            position = self._read_from(position, most, batch, abandon_pending)
            if not abandon_pending or sum(rows.points for rows in batch) >= most:
                break
            following = self._following(position)
            if following is None:
                break
            self.unreadable += max(1, (following - position) // 8 - _ROW_WORDS)
            position = following
        self.cursor = Cursor(position, self.cursor.last_time)
        return batch

    def _following(self, position: int) -> int | None:
        """Return the next readable position after an incomplete row; None if nothing was written after it."""
        head = self._words[self._head_word]
        if position == head and self._words[HeaderWord.STATE] != State.OPEN:
            return None
        words = np.frombuffer(self._buffer, np.int64, self._size >> 3, self._start)
        positions = position + np.arange(8, self._size, 8)
        marks = words[(positions % self._size) >> 3]
        for index in np.flatnonzero(marks >> LAYOUT_BITS == positions >> 3):
            following, number = int(positions[index]), int(marks[index]) & _LAYOUT_MASK
            if number in (WRAP, SKIP):
                return following
            if number in ITEM_LAYOUTS:
                at = (self._start + following % self._size) >> 3
                if row_words(self._words, at, self._end_word) is not None:
                    return following
                continue
            form = self._layouts.find(number, unpublished=True)
            end = following % self._size + (0 if form is None else form.row_bytes)
            if form is not None and end <= self._size and words[(end >> 3) - 1] == marks[index]:
                return following
        return head if position < head <= position + self._size else None

    def _read_from(self, position: int, most: int, batch: list[Rows | ItemRows], abandon_pending: bool) -> int:
        """Read complete rows from a position, and return the position after them."""
        values = sum(rows.points for rows in batch)
        while values < most:
            offset = self._start + position % self._size
            mark = self._words[offset >> 3]
            number = mark & _LAYOUT_MASK
            if mark >> LAYOUT_BITS != position >> 3:
                break
            if number == WRAP:
                position += self._size - position % self._size
                continue
            if number == SKIP:
                position += self._words[(offset >> 3) + 1]
                continue
            if number in ITEM_LAYOUTS:
                taken = self._read_items(position, offset, number, most - values, batch, abandon_pending)
                if taken == 0:
                    break
                position += taken
                values += batch[-1].points
                continue
            form = self._layouts.find(number, unpublished=abandon_pending)
            if form is None:
                break
            if self._layouts.measurements[number]:
                measured = self._measurements(position, offset, max(1, (most - values) // 2), abandon_pending)
                if not measured:
                    break
                batch += measured
                count = sum(len(rows.times) for rows in measured)
                position += count * _MEASUREMENT_BYTES
                values += 2 * count
                continue
            per_row = len(form.codes) + 1
            words = self._stretch(position, offset, form, max(1, (most - values) // per_row))
            if not abandon_pending:
                words = words[: _finished(words, form)]
            if len(words) == 0:
                break
            batch.append(self._unpack(words, form))
            position += len(words) * form.row_bytes
            values += len(words) * per_row
        return position

    def release(self) -> None:
        """Free the space of all rows read so far. Call this once the rows are in the spool.

        This resets `STALLED`, which was published without these rows. Otherwise, a process that waits for them would give up.
        """
        self._words[HeaderWord.STALLED] = 0
        self._words[self._tail_word] = self.cursor.position

    @property
    def released(self) -> int:
        """Position up to which the space has been freed."""
        return self._words[self._tail_word]

    @property
    def unreleased(self) -> float:
        """Share of the lane that has been read but not released, from 0 to 1."""
        return self.share(self.cursor.position - self._words[self._tail_word])

    def share(self, size: int) -> float:
        """Return a number of bytes as a fraction of the lane."""
        return size / self._size

    def has_next(self) -> bool:
        """Return whether a row or a mark follows the rows that were read."""
        position = self.cursor.position
        mark = self._words[(self._start + position % self._size) >> 3]
        return mark != 0 and mark >> LAYOUT_BITS == position >> 3

    def _stretch(self, position: int, offset: int, form: RowForm, most: int) -> NDArray[np.int64]:
        """Return a copy of consecutive complete rows of one form, starting at a position: one line of words per row.

        Each pass checks more rows, so that mixed layouts cost little and long stretches take few passes.
        """
        size = form.row_bytes
        room = min(most, (self._start + self._size - offset) // size)
        count, step = 0, 16
        base = position << POSITION_SHIFT | form.layout.id
        while count < room:
            step = min(step, room - count)
            rows = self._words_of(offset + count * size, step, size >> 3)
            expected = base + (np.arange(count, count + step, dtype=np.int64) * (size << POSITION_SHIFT))
            whole = (rows[:, 0] == expected) & (rows[:, -1] == expected)
            if not whole.all():
                count += int(whole.argmin())
                break
            count += step
            step *= 4
        if count and not _STORES_IN_ORDER:
            Event().wait(_SETTLE)
        return self._words_of(offset, count, size >> 3).copy()

    def _read_items(
        self, position: int, offset: int, number: int, most: int, batch: list[Rows | ItemRows], abandon_pending: bool
    ) -> int:
        """Read consecutive complete rows that describe their own columns, and return the number of their bytes."""
        first = at = offset >> 3
        begins: list[int] = []
        values = 0
        while values < most and at < self._end_word:
            if self._words[at] != position + 8 * (at - first) << POSITION_SHIFT | number:
                break
            sizes = row_words(self._words, at, self._end_word)
            if sizes is None:
                break
            begins.append(at - first)
            at += sizes[0]
            values += sizes[1] + 1
        if not begins:
            return 0
        if not _STORES_IN_ORDER:
            Event().wait(_SETTLE)
        words = np.frombuffer(self._buffer, np.int64, at - first, offset).copy()
        rows = self._decode(words, begins, number, abandon_pending)
        if not abandon_pending and (finished := rows.finished) < len(begins):
            if finished == 0:
                return 0
            at = first + begins[finished]
            rows = self._decode(words, begins[:finished], number, abandon_pending)
        self.cursor = Cursor(self.cursor.position, int(rows.times[-1]))
        self.unreadable += rows.unreadable
        batch.append(rows)
        return 8 * (at - first)

    def _decode(self, words: NDArray[np.int64], begins: list[int], number: int, abandon_pending: bool) -> ItemRows:
        indices = np.array(begins)
        times = _unique_times(words[indices + 1], self.cursor.last_time, self._index)
        rows = decode_rows(words, indices, times, self._layouts.streams, stepped=number == ITEMS)
        if rows.unreadable:
            self._layouts.refresh(unpublished=abandon_pending)
            rows = decode_rows(words, indices, times, self._layouts.streams, stepped=number == ITEMS)
        return rows

    def _measurements(self, position: int, offset: int, most: int, abandon_pending: bool) -> list[Rows]:
        """Return the complete measurements at a position, by layout. Like `_stretch`, check more rows in each pass."""
        room = min(most, (self._start + self._size - offset) // _MEASUREMENT_BYTES)
        count, step = 0, 16
        while count < room:
            step = min(step, room - count)
            rows = self._words_of(offset + count * _MEASUREMENT_BYTES, step, _MEASUREMENT_BYTES >> 3)
            marks, ends = rows[:, 0], rows[:, -1]
            expected = (position + np.arange(count, count + step) * _MEASUREMENT_BYTES) >> 3
            whole = (
                (marks >> LAYOUT_BITS == expected) & (marks == ends) & self._layouts.measurements[marks & _LAYOUT_MASK]
            )
            if not whole.all():
                count += int(whole.argmin())
                break
            count += step
            step *= 4
        if count and not _STORES_IN_ORDER:
            Event().wait(_SETTLE)
        rows = self._words_of(offset, count, _MEASUREMENT_BYTES >> 3).copy()
        numbers, values = rows[:, 0] & _LAYOUT_MASK, np.ascontiguousarray(rows[:, 3])
        if not abandon_pending:
            waiting = self._layouts.deferred[numbers] & (values == PENDING)
            if waiting.any():
                rows = rows[: waiting.argmax()]
                numbers, values = numbers[: len(rows)], values[: len(rows)]
        if len(rows) == 0:
            return []
        times = _unique_times(rows[:, 1], self.cursor.last_time, self._index)
        self.cursor = Cursor(self.cursor.position, int(times[-1]))
        order = np.argsort(numbers, kind="stable")
        firsts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
        groups = []
        for group in np.split(order, firsts[1:]):
            form = self._layouts.find(int(numbers[group[0]]))
            assert form is not None
            groups.append(Rows(form, times[group], rows[group, 2], values[group, np.newaxis]))
        return groups

    def _words_of(self, offset: int, count: int, line: int) -> NDArray[np.int64]:
        """Return the words of `count` rows of `line` words each, one row per line."""
        return np.frombuffer(self._buffer, np.int64, count * line, offset).reshape(count, line)

    def _unpack(self, words: NDArray[np.int64], form: RowForm) -> Rows:
        times = _unique_times(words[:, 1], self.cursor.last_time, self._index)
        self.cursor = Cursor(self.cursor.position, int(times[-1]))
        return Rows(form, times, np.ascontiguousarray(words[:, 2]), words[:, 3:-1])


def _finished(words: NDArray[np.int64], form: RowForm) -> int:
    """Return the number of leading rows whose device values are all finished."""
    if len(form.device_words) == 0:
        return len(words)
    waiting = (words[:, 3 + form.device_words] == PENDING).any(axis=1)
    return int(waiting.argmax()) if waiting.any() else len(words)


def _unique_times(times: NDArray[np.int64], last: int, lane: int) -> NDArray[np.uint64]:
    """Make times unique in the process.

    Times are multiples of 64 ns that strictly increase within a lane, plus the lane's index. If the clock was set back,
    times advance by one tick (64 ns) per row until the clock has caught up.
    """
    ticks = times // MAX_LANES
    index = np.arange(len(ticks), dtype=np.int64)
    ticks = np.maximum.accumulate(np.maximum(ticks, last // MAX_LANES + 1) - index) + index
    return (ticks * MAX_LANES + lane).astype(np.uint64)
