"""Fast decoding of number data points of several series in one metric: they are grouped by series, then read by NumPy.

Points of one series differ only in times and values. This module groups points by their unchanging bytes, in any order of
arrival. `fixed` then reads each group, and verifies that its points have the same layout, so the grouping need not be exact.
"""

import secrets
from array import array
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.fixed import FixedPoints, changing_bytes, read_fixed_points

__all__ = ["read_mixed_points"]

_SMALLEST: Final = 20
"""Minimum bytes of a point with a time and a value, including its tag and length."""

_SIZES: Final = 100
"""Maximum number of different sizes of points. Number points of few series have fewer."""

_BLOCK_NUMBERS: Final = 1 << 20
"""Maximum numbers in an index array, which takes eight bytes per number."""

_MIXERS: Final = np.frombuffer(secrets.token_bytes(8 << 12), np.uint64) | np.uint64(1)
"""Random odd factors, so that senders cannot create different points with equal sums. protobuf reads larger points."""


def read_mixed_points(body: memoryview, begin: int, end: int, tag: int) -> list[tuple[int, FixedPoints]] | None:
    """Read consecutive points between two offsets, each under `tag` (of one byte).

    Returns:
        For each series the offset of its first point, and its points in order; None if protobuf should read the points.
    """
    starts = _starts(body, begin, end, tag)
    if starts is None:
        return None
    sizes = np.diff(starts, append=end)
    different = np.unique(sizes)
    if len(different) > _SIZES or different[-1] > len(_MIXERS):
        return None
    groups: list[tuple[int, FixedPoints]] = []
    for size in different.tolist():
        rows = starts[sizes == size]
        changing = changing_bytes(body, int(rows[0]), size)
        if changing is None:
            return None
        sums = _sums(body, rows, np.flatnonzero(~changing))
        order = np.argsort(sums, kind="stable")
        edges = np.flatnonzero(np.diff(sums[order], prepend=sums[order[0]] + np.uint64(1)))
        if len(edges) > len(rows) // 4:
            return None
        table = memoryview(_table(body, rows[order], size))
        for first, last in zip(edges.tolist(), [*edges[1:].tolist(), len(rows)], strict=True):
            points = read_fixed_points(table, first * size, last * size, tag)
            if points is None:
                return None
            groups.append((int(rows[order[first]]), points))
    return sorted(groups, key=lambda group: group[0])


def _starts(body: memoryview, begin: int, end: int, tag: int) -> NDArray[np.int64] | None:
    """Offset of each point; None if a point is too small, too large or under another tag."""
    starts = array("q")
    at = begin
    while at < end:
        if end - at < _SMALLEST or body[at] != tag:
            return None
        size = body[at + 1] + 2
        if size > 0x81:
            high = body[at + 2]
            if high > 0x7F:
                return None
            size = (size - 0x82 | high << 7) + 3
        if size < _SMALLEST:
            return None
        starts.append(at)
        at += size
    return np.frombuffer(starts, np.int64) if at == end and len(starts) else None


def _sums(body: memoryview, rows: NDArray[np.int64], columns: NDArray[np.intp]) -> NDArray[np.uint64]:
    """A sum over these columns of each row: the same for equal bytes, and almost always different for different ones."""
    data = np.frombuffer(body, np.uint8)
    sums = np.empty(len(rows), np.uint64)
    step = max(_BLOCK_NUMBERS // max(len(columns), 1), 1)
    for row in range(0, len(rows), step):
        # Products and sums wrap around, which is harmless.
        sums[row : row + step] = data[rows[row : row + step, None] + columns].astype(np.uint64) @ _MIXERS[columns]
    return sums


def _table(body: memoryview, rows: NDArray[np.int64], size: int) -> bytearray:
    """Copy the rows to a contiguous table."""
    data = np.frombuffer(body, np.uint8)
    buffer = bytearray(len(rows) * size)
    table = np.frombuffer(buffer, np.uint8).reshape(-1, size)
    step = max(_BLOCK_NUMBERS // size, 1)
    for row in range(0, len(rows), step):
        table[row : row + step] = data[rows[row : row + step, None] + np.arange(size)]
    return buffer
