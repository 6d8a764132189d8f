"""Number data points of one fixed layout, read by NumPy all at once.

A sender that writes many points of one series, as ours does, repeats the same bytes with other numbers in them. Whether it did
is checked, not assumed: every byte but those of times and values must be the same in all points. What is not of this form is
for protobuf itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Field", "FixedPoints", "changing_bytes", "iterate_fields", "read_fixed_points"]

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
"""Fewer are read as quickly by protobuf."""

_MAX_POINT_BYTES: Final = 1 << 16
"""Larger points have more attributes than a store takes, and an index of their bytes would take eight times their memory."""

_MANY_FIELDS: Final = 1000
"""Fields of one point that is left to protobuf."""

_BLOCK_BYTES: Final = 1 << 20
"""Bytes that are compared at once."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message: its number, its wire type, and where its tag begins, its content begins, and it ends."""

    number: int
    wire: int
    begin: int
    content: int
    end: int


@dataclass(frozen=True, eq=False)
class FixedPoints:
    """Columns of n points.

    Attributes:
        first: The first point, as a message: its attributes are those of all.
        times: uint64, shape (n,).
        start_times: uint64, shape (n,).
        words: The values' bits, int64, shape (n,).
        integers: bool, shape (n,).
    """

    first: bytes
    times: NDArray[np.uint64]
    start_times: NDArray[np.uint64]
    words: NDArray[np.int64]
    integers: NDArray[np.bool_]


def iterate_fields(body: memoryview, begin: int, end: int, most: int | None = None) -> list[Field] | None:
    """The fields of a message that lies between two offsets.

    Returns:
        None if it is no message, or one that is better left to protobuf: there are groups in it, or more than `most` fields.
    """
    fields: list[Field] = []
    at = begin
    while at < end:
        tag, content = _varint(body, at, end)
        if content < 0:
            return None
        wire = tag & 7
        if wire == _LEN:
            length, content = _varint(body, content, end)
            if content < 0:
                return None
            after = content + length
        elif wire == _I64:
            after = content + 8
        elif wire == _VARINT:
            _, after = _varint(body, content, end)
        elif wire == _I32:
            after = content + 4
        else:
            return None
        if after < 0 or after > end:
            return None
        if len(fields) == most:
            return None
        fields.append(Field(tag >> 3, wire, at, content, after))
        at = after
    return fields


def read_fixed_points(body: memoryview, begin: int, end: int, tag: int) -> FixedPoints | None:
    """Points that follow each other between two offsets, each under `tag` (of one byte); None if they are not alike."""
    if begin >= end or body[begin] != tag:
        return None
    length, content = _varint(body, begin + 1, end)
    size = content - begin + length
    if content < 0 or length <= 0 or (end - begin) % size or (end - begin) // size < _MIN_POINTS:
        return None
    offsets = _offsets(body, begin, size)
    if offsets is None:
        return None
    table = np.frombuffer(body[begin:end], np.uint8).reshape(-1, size)
    value_tag = offsets[_AS_DOUBLE] - 1
    fixed = np.flatnonzero(~_changing(offsets, size))
    rows = max(_BLOCK_BYTES // size, 1)
    for row in range(0, len(table), rows):
        if not (table[row : row + rows, fixed] == table[0, fixed]).all():
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
    """Which bytes of a point hold its times, its value, and the value's tag; None if it is one that protobuf must read.

    Args:
        body: What the point is in.
        begin: Offset of the point's tag.
        size: Bytes of the point, tag and length included.
    """
    offsets = _offsets(body, begin, size)
    return None if offsets is None else _changing(offsets, size)


def _offsets(body: memoryview, begin: int, size: int) -> dict[int, int] | None:
    """Offsets of times and value in a point by field number (`_AS_DOUBLE` for any value); None as for `changing_bytes`."""
    if size > _MAX_POINT_BYTES:
        return None
    _, content = _varint(body, begin + 1, begin + size)
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
        elif field.number != _ATTRIBUTES:  # flags and exemplars differ between points where they matter
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


def _varint(body: memoryview, at: int, end: int) -> tuple[int, int]:
    """(value, offset after it); the offset is -1 if there is none."""
    value = shift = 0
    while at < end and shift < 64:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return 0, -1
