"""Fast decoding of number data points with the same layout. NumPy reads all of these points at once.

If a sender writes many points of one series, as tensormeter does, the encoded points differ only in their times and values.
This module verifies that all other bytes are the same in all points. If they are not, protobuf reads the points.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.varint import decode_varint

__all__ = [
    "Field",
    "FixedPoints",
    "changing_bytes",
    "find_points",
    "iterate_fields",
    "iterate_some_fields",
    "read_fixed_points",
]

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5

# Fields of NumberDataPoint.
_START_TIME: Final = 2
_TIME: Final = 3
_AS_DOUBLE: Final = 4
_EXEMPLARS: Final = 5
_AS_INT: Final = 6
_ATTRIBUTES: Final = 7
_FLAGS: Final = 8

_TAG_DOUBLE: Final = _AS_DOUBLE << 3 | _I64
_TAG_INT: Final = _AS_INT << 3 | _I64

_MIN_POINTS: Final = 4
"""Minimum number of points that NumPy reads at once. protobuf reads fewer points just as quickly."""

_MAX_POINT_BYTES: Final = 1 << 16
"""Maximum size of a point in bytes. An array with the index of each byte takes eight times the memory of the point. No
store accepts larger points, because they have too many attributes."""

_MANY_FIELDS: Final = 1000
"""Maximum number of fields in a point that NumPy reads. protobuf reads points with more fields."""

_BLOCK_BYTES: Final = 1 << 20
"""Maximum number of bytes to compare at once."""


@dataclass(frozen=True, slots=True)
class Field:
    """A message field: its number, its wire type, and the offsets of its tag, content and end."""

    number: int
    wire: int
    begin: int
    content: int
    end: int


@dataclass(frozen=True, eq=False)
class FixedPoints:
    """The times and values of n points, as columns.

    Attributes:
        first: Encoded first point. All points have the same attributes.
        times: Time of each point, uint64, shape (n,).
        start_times: Start time of each point, uint64, shape (n,); 0 if the points have no start time.
        words: Bit pattern of each value, int64, shape (n,).
        integers: Whether each value is an integer, bool, shape (n,).
    """

    first: bytes
    times: NDArray[np.uint64]
    start_times: NDArray[np.uint64]
    words: NDArray[np.int64]
    integers: NDArray[np.bool_]


def iterate_fields(body: memoryview, begin: int, end: int, most: int | None = None) -> list[Field] | None:
    """List the fields of a message between two offsets.

    Returns:
        Fields in order. None if the bytes are not a message, or if the message has groups or more than `most` fields.
    """
    fields: list[Field] = []
    at = begin
    while at < end:
        field = _field_at(body, at, end)
        if field is None or len(fields) == most:
            return None
        fields.append(field)
        at = field.end
    return fields


def iterate_some_fields(body: memoryview, begin: int, end: int) -> Iterator[Field]:
    """Yield the fields of a message between two offsets, up to the first one that is not valid."""
    while begin < end and (field := _field_at(body, begin, end)) is not None:
        yield field
        begin = field.end


def _field_at(body: memoryview, at: int, end: int) -> Field | None:
    """Return the field at an offset; None if it is not valid or is a group."""
    tag, content = decode_varint(body, at, end)
    if content < 0:
        return None
    wire = tag & 7
    if wire == _LEN:
        length, content = decode_varint(body, content, end)
        if content < 0:
            return None
        after = content + length
    elif wire == _I64:
        after = content + 8
    elif wire == _VARINT:
        _, after = decode_varint(body, content, end)
    elif wire == _I32:
        after = content + 4
    else:
        return None
    return None if after < 0 or after > end else Field(tag >> 3, wire, at, content, after)


def find_points(body: memoryview, begin: int, end: int, tag: int) -> tuple[int, int, int] | None:
    """Find the layout of the consecutive points between two offsets. Each point must start with the one-byte `tag`.

    Returns:
        Size of each point, and the offsets of its time and value in the point. None if any other bytes differ between the
        points, or if there are too few points.
    """
    size = _point_size(body, begin, end, tag)
    offsets = None if size is None else _offsets(body, begin, size)
    if size is None or offsets is None or _START_TIME in offsets:
        return None
    fixed = ~_changing(offsets, size)
    fixed[offsets[_AS_DOUBLE] - 1] = True
    if not _is_fixed(np.frombuffer(body[begin:end], np.uint8).reshape(-1, size), np.flatnonzero(fixed)):
        return None
    return size, offsets[_TIME], offsets[_AS_DOUBLE]


def read_fixed_points(body: memoryview, begin: int, end: int, tag: int) -> FixedPoints | None:
    """Read the consecutive points between two offsets. Return None if their layouts differ or if there are too few points.

    Each point must start with the one-byte `tag`.
    """
    size = _point_size(body, begin, end, tag)
    offsets = None if size is None else _offsets(body, begin, size)
    if size is None or offsets is None:
        return None
    _, content = decode_varint(body, begin + 1, end)
    table = np.frombuffer(body[begin:end], np.uint8).reshape(-1, size)
    value_tag = offsets[_AS_DOUBLE] - 1
    if not _is_fixed(table, np.flatnonzero(~_changing(offsets, size))):
        return None
    integers = table[:, value_tag] == _TAG_INT
    if not (integers | (table[:, value_tag] == _TAG_DOUBLE)).all():
        return None
    n = len(table)
    return FixedPoints(
        bytes(body[content : begin + size]),
        _words(table, offsets[_TIME]).view(np.uint64),
        _words(table, offsets[_START_TIME]).view(np.uint64) if _START_TIME in offsets else np.zeros(n, np.uint64),
        _words(table, offsets[_AS_DOUBLE]),
        integers,
    )


def changing_bytes(body: memoryview, begin: int, size: int) -> NDArray[np.bool_] | None:
    """Return a mask that selects the bytes of a point's times, value and value tag, or None if protobuf must read the point.

    Args:
        body: Bytes that contain the point.
        begin: Offset of the point's tag.
        size: Size of the point in bytes, including its tag and length.
    """
    offsets = _offsets(body, begin, size)
    return None if offsets is None else _changing(offsets, size)


def _point_size(body: memoryview, begin: int, end: int, tag: int) -> int | None:
    """Return the size of the points between two offsets, or None if they cannot all have the size of the first one."""
    if begin >= end or body[begin] != tag:
        return None
    length, content = decode_varint(body, begin + 1, end)
    size = content - begin + length
    if content < 0 or length <= 0 or (end - begin) % size or (end - begin) // size < _MIN_POINTS:
        return None
    return size


def _is_fixed(table: NDArray[np.uint8], columns: NDArray[np.intp]) -> bool:
    """Return whether the given columns are the same in all rows."""
    rows = max(_BLOCK_BYTES // table.shape[1], 1)
    return all(
        bool((table[row : row + rows, columns] == table[0, columns]).all()) for row in range(0, len(table), rows)
    )


def _offsets(body: memoryview, begin: int, size: int) -> dict[int, int] | None:
    """Return the offsets of a point's times and value by field number, or None if protobuf must read the point.

    The key of the value is `_AS_DOUBLE`, even if the value is an integer.
    """
    if size > _MAX_POINT_BYTES:
        return None
    _, content = decode_varint(body, begin + 1, begin + size)
    fields = iterate_fields(body, content, begin + size, _MANY_FIELDS)
    if fields is None:
        return None
    offsets: dict[int, int] = {}
    for field in fields:
        if field.number in (_START_TIME, _TIME, _AS_DOUBLE, _AS_INT) and field.wire == _I64:
            name = _AS_DOUBLE if field.number == _AS_INT else field.number
            if name in offsets or field.content - field.begin != 1:
                return None
            offsets[name] = field.content - begin
        elif field.number != _ATTRIBUTES:  # flags and exemplars may differ between points
            return None
    return offsets if _TIME in offsets and _AS_DOUBLE in offsets else None


def _changing(offsets: Mapping[int, int], size: int) -> NDArray[np.bool_]:
    changing = np.zeros(size, np.bool_)
    for offset in offsets.values():
        changing[offset : offset + 8] = True
    changing[offsets[_AS_DOUBLE] - 1] = True
    return changing


def _words(table: NDArray[np.uint8], offset: int) -> NDArray[np.int64]:
    return np.ascontiguousarray(table[:, offset : offset + 8]).view("<i8").reshape(-1).astype(np.int64, copy=False)
