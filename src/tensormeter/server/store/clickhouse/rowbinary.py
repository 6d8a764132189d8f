"""Encoding of rows in ClickHouse's RowBinary format, and decoding of their strings."""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.varint import decode_varint, encode_varint

__all__ = ["encode_rows", "read_string"]


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8", "replace")
    return encode_varint(len(encoded)) + encoded


def _bytes(value: bytes) -> bytes:
    return encode_varint(len(value)) + value


def _texts(values: Sequence[str]) -> bytes:
    return encode_varint(len(values)) + b"".join(map(_text, values))


def _integers(values: NDArray[np.uint64]) -> bytes:
    return encode_varint(len(values)) + values.tobytes()


_ENCODERS: Final[dict[str, Callable[[Any], bytes]]] = {
    "B": struct.Struct("<B").pack,
    "I": struct.Struct("<I").pack,
    "Q": struct.Struct("<Q").pack,
    "q": struct.Struct("<q").pack,
    "d": struct.Struct("<d").pack,
    "s": _text,
    "b": _bytes,
    "f": bytes,
    "a": _texts,
    "A": _integers,
}


def encode_rows(columns: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> bytes:
    """Encode rows as RowBinary.

    Args:
        columns: Type letters by column: B, I, Q for unsigned integers of 8, 32, 64 bits; q for Int64 and DateTime64; d
            for Float64; s for String from str; b for String from bytes; f for FixedString; a for Array(String); A for
            Array(UInt64) from an array. A tuple has one letter per item.
        rows: Values in the order of the letters, with tuples flattened.
    """
    encoders = [_ENCODERS[letter] for letters in columns.values() for letter in letters]
    # Encode row by row, because a list of all fields of all rows would take ten times the memory.
    return b"".join([b"".join([encode(value) for encode, value in zip(encoders, row, strict=True)]) for row in rows])


def read_string(rows: memoryview, position: int) -> tuple[bytes, int]:
    """Decode the string at a position, and return its bytes and the position after it.

    Raises:
        ValueError: The rows end before the string does.
    """
    length, start = decode_varint(rows, position, len(rows))
    if start < 0 or start + length > len(rows):
        raise ValueError(f"the rows end in the middle of the string at byte {position}")
    return bytes(rows[start : start + length]), start + length
