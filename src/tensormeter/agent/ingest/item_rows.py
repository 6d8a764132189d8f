"""Rows that describe their own columns (layouts ITEMS and ITEMS_UNSTEPPED).

NumPy decodes the columns of all rows at once. A column with an unknown stream, or with a size or code that does not fit
its stream, is unreadable. If the sizes of a row's columns contradict the size of the row, all of them are unreadable.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.agent.ingest.stream_table import DISTRIBUTION, UNKNOWN, StreamTable
from tensormeter.ring.format import (
    ITEM_CODE_BITS,
    ITEM_STREAM_SHIFT,
    ITEMS,
    ITEMS_UNSTEPPED,
    LOST,
    MAX_ITEM_WORDS,
    PENDING,
)
from tensormeter.ring.histogram_buckets import EXPLICIT, SPARSE, STATISTICS_WORDS, TABLES

__all__ = ["ITEM_LAYOUTS", "ItemRows", "decode_rows", "row_words"]

ITEM_LAYOUTS: Final = frozenset({ITEMS, ITEMS_UNSTEPPED})

_HEADER_WORDS: Final = 4
"""Number of words before a row's column headers: mark, time, step and sizes."""

_NUMBER_CODES: Final = tuple(b"dqD")
_DEVICE: Final = ord("D")
_CODES: Final = 128
_LEAST_EXPLICIT_WORDS: Final = 3
"""Words of a precomputed histogram with one bucket."""


@dataclass(frozen=True, eq=False)
class ItemRows:
    """n rows with m readable columns in total.

    Attributes:
        times: uint64, shape (n,), as in `Rows`.
        steps: int64, shape (n,).
        stepped: Whether the rows have a step.
        words: Words of the rows, int64.
        rows: Index of each column's row, int64, shape (m,).
        streams: Number of each column's stream, int64, shape (m,).
        kinds: Kind of each column's stream, as in `StreamTable`, uint8, shape (m,).
        codes: Storage code of each column, uint8, shape (m,).
        starts: Index of each column's first value in `words`, int64, shape (m,).
        sizes: Number of words in each column, int64, shape (m,).
        unreadable: Number of unreadable columns.
    """

    times: NDArray[np.uint64]
    steps: NDArray[np.int64]
    stepped: bool
    words: NDArray[np.int64]
    rows: NDArray[np.int64]
    streams: NDArray[np.int64]
    kinds: NDArray[np.uint8]
    codes: NDArray[np.uint8]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    unreadable: int = 0

    @property
    def points(self) -> int:
        """Number of points, including the steps."""
        return len(self.times) + len(self.rows)

    @cached_property
    def lost(self) -> NDArray[np.bool_]:
        """Whether the device never finished each column, bool, shape (m,)."""
        lost: NDArray[np.bool_] = self._contains(PENDING) | self._contains(LOST)
        return lost

    @property
    def lost_values(self) -> int:
        """Number of values that the device never finished."""
        return int(self.lost.sum())

    @property
    def finished(self) -> int:
        """Number of leading rows whose device values are all finished."""
        waiting = self.rows[self._contains(PENDING)]
        return int(waiting[0]) if len(waiting) else len(self.times)

    def _contains(self, word: int) -> NDArray[np.bool_]:
        """Return whether a device wrote the given word into each column."""
        device = self.codes == _DEVICE
        contains: NDArray[np.bool_] = device & (self.words[self.starts] == word)
        for index in np.flatnonzero(device & (self.sizes > 1)):
            start = self.starts[index]
            contains[index] = bool((self.words[start : start + self.sizes[index]] == word).any())
        return contains

    def values_of(self, index: int) -> NDArray[np.int64]:
        """Return the words of a column."""
        start = int(self.starts[index])
        return self.words[start : start + int(self.sizes[index])]


def row_words(words: memoryview, at: int, end: int) -> tuple[int, int] | None:
    """Return the number of words and of columns of the row that begins at a word; None if the row is incomplete.

    Args:
        words: Words of the ring.
        at: Index of the row's first word.
        end: Index of the word after the lane.
    """
    if at + _HEADER_WORDS >= end:
        return None
    columns, values = words[at + 3] >> 32, words[at + 3] & 0xFFFFFFFF
    last = at + _HEADER_WORDS + columns + values
    if columns < 0 or last >= end or words[last] != words[at]:
        return None
    return last + 1 - at, columns


def decode_rows(
    words: NDArray[np.int64], begins: NDArray[np.int64], times: NDArray[np.uint64], table: StreamTable, *, stepped: bool
) -> ItemRows:
    """Decode complete rows.

    Args:
        words: Words of the rows.
        begins: Index of the first word of each row, shape (n,).
        times: Unique time of each row, shape (n,).
        table: Streams of the ring.
        stepped: Whether the rows have a step.
    """
    columns, values = words[begins + 3] >> 32, words[begins + 3] & 0xFFFFFFFF
    first_headers = begins + _HEADER_WORDS
    ends = np.cumsum(columns)
    rows = np.repeat(np.arange(len(begins)), columns)
    headers = words[np.arange(len(rows)) + np.repeat(first_headers - (ends - columns), columns)]
    sizes = headers >> ITEM_CODE_BITS & MAX_ITEM_WORDS
    before = np.concatenate(([0], np.cumsum(sizes)))
    is_whole = before[ends] - before[ends - columns] == values
    starts = before[:-1] + np.repeat(first_headers + columns - before[ends - columns], columns)
    streams, codes = headers >> ITEM_STREAM_SHIFT, (headers & 0xFF).astype(np.uint8)
    kinds = table.kinds(streams)
    is_number = np.isin(codes, _NUMBER_CODES) & (sizes == 1)
    readable = is_whole[rows] & (sizes > 0) & (kinds != UNKNOWN) & (is_number | (kinds == DISTRIBUTION))
    for index in np.flatnonzero(readable & (kinds == DISTRIBUTION)).tolist():
        part = words[starts[index] : starts[index] + sizes[index]]
        readable[index] = _is_distribution(chr(codes[index]), part)
    chosen = np.flatnonzero(readable)
    return ItemRows(
        times,
        words[begins + 2],
        stepped,
        words,
        rows[chosen],
        streams[chosen],
        kinds[chosen],
        codes[chosen],
        starts[chosen],
        sizes[chosen],
        len(readable) - len(chosen),
    )


def _is_distribution(code: str, words: NDArray[np.int64]) -> bool:
    """Return whether words are a valid column of a distribution."""
    if code in "dD":
        return len(words) == STATISTICS_WORDS
    if code == EXPLICIT:
        return len(words) >= _LEAST_EXPLICIT_WORDS and len(words) % 2 == 1
    if code != SPARSE:
        return code in TABLES and len(words) == TABLES[code].words
    table = TABLES.get(chr(words[0])) if 0 <= words[0] < _CODES else None
    bins = words[1:] >> 32
    return table is not None and bool(np.all(np.diff(bins, prepend=-1) > 0)) and bool(np.all(bins < table.bins))
