"""Fast decoding of a metric whose number data points belong to several series, which may be interleaved.

The points of a series differ only in their times and values. This module groups the points by a hash of all other bytes.
`fixed_layout` then reads each group with NumPy, and verifies that all of its points have the same layout. A hash collision
therefore cannot cause wrong results.
"""

import secrets
from array import array
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.fixed_layout import FixedPoints, changing_bytes, read_fixed_points

__all__ = ["read_mixed_points"]

_MIN_POINT_BYTES: Final = 20
"""Minimum size in bytes of a point with a time and a value, including its tag and length."""

_MAX_SIZES: Final = 100
"""Maximum number of different point sizes in a metric. The points of a few series have far fewer sizes."""

_MAX_INDEXES: Final = 1 << 20
"""Maximum number of elements in an index array. Each element takes eight bytes."""

_HASH_FACTORS: Final = np.frombuffer(secrets.token_bytes(8 << 12), np.uint64) | np.uint64(1)
"""Random odd hash factors, one for each byte of a point. Because they are random, a sender cannot construct points whose hashes
collide. protobuf reads points with more bytes than factors."""


def read_mixed_points(body: memoryview, begin: int, end: int, tag: int) -> list[tuple[int, FixedPoints]] | None:
    """Read the consecutive points between two offsets. Each point must start with the one-byte `tag`.

    Returns:
        One pair for each series: the offset of the series' first point, and all points of the series in order. None if
        protobuf should read the points.
    """
    offsets = _point_offsets(body, begin, end, tag)
    if offsets is None:
        return None
    sizes = np.diff(offsets, append=end)
    unique_sizes = np.unique(sizes)
    if len(unique_sizes) > _MAX_SIZES or unique_sizes[-1] > len(_HASH_FACTORS):
        return None
    groups: list[tuple[int, FixedPoints]] = []
    for size in unique_sizes.tolist():
        rows = offsets[sizes == size]
        changing = changing_bytes(body, int(rows[0]), size)
        if changing is None:
            return None
        hashes = _row_hashes(body, rows, np.flatnonzero(~changing))
        order = np.argsort(hashes, kind="stable")
        group_starts = np.flatnonzero(np.diff(hashes[order], prepend=hashes[order[0]] + np.uint64(1)))
        if len(group_starts) > len(rows) // 4:
            return None
        table = memoryview(_copy_rows(body, rows[order], size))
        for first, last in zip(group_starts.tolist(), [*group_starts[1:].tolist(), len(rows)], strict=True):
            points = read_fixed_points(table, first * size, last * size, tag)
            if points is None:
                return None
            groups.append((int(rows[order[first]]), points))
    return sorted(groups, key=lambda group: group[0])


def _point_offsets(body: memoryview, begin: int, end: int, tag: int) -> NDArray[np.int64] | None:
    """Return the offset of each point, or None if a point is too small, is too large or has a different tag."""
    offsets = array("q")
    offset = begin
    while offset < end:
        if end - offset < _MIN_POINT_BYTES or body[offset] != tag:
            return None
        size = body[offset + 1] + 2
        if size > 0x81:
            high = body[offset + 2]
            if high > 0x7F:
                return None
            size = (size - 0x82 | high << 7) + 3
        if size < _MIN_POINT_BYTES:
            return None
        offsets.append(offset)
        offset += size
    return np.frombuffer(offsets, np.int64) if offset == end and len(offsets) else None


def _row_hashes(body: memoryview, rows: NDArray[np.int64], columns: NDArray[np.intp]) -> NDArray[np.uint64]:
    """Return a hash of the given columns for each row. Different bytes almost never have the same hash."""
    data = np.frombuffer(body, np.uint8)
    hashes = np.empty(len(rows), np.uint64)
    step = max(_MAX_INDEXES // max(len(columns), 1), 1)
    for row in range(0, len(rows), step):
        # The products and sums may wrap around, which is harmless.
        hashes[row : row + step] = (
            data[rows[row : row + step, None] + columns].astype(np.uint64) @ _HASH_FACTORS[columns]
        )
    return hashes


def _copy_rows(body: memoryview, rows: NDArray[np.int64], size: int) -> bytearray:
    """Copy rows of the same size into a contiguous table."""
    data = np.frombuffer(body, np.uint8)
    buffer = bytearray(len(rows) * size)
    table = np.frombuffer(buffer, np.uint8).reshape(-1, size)
    step = max(_MAX_INDEXES // size, 1)
    for row in range(0, len(rows), step):
        table[row : row + step] = data[rows[row : row + step, None] + np.arange(size)]
    return buffer
