"""Rows in ClickHouse's RowBinary, column by column in the order of the types given."""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from tensormeter.otlp.varint import encode_varint

__all__ = ["encode_rows"]


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8", "replace")
    return encode_varint(len(encoded)) + encoded


def _bytes(value: bytes) -> bytes:
    return encode_varint(len(value)) + value


def _texts(values: Sequence[str]) -> bytes:
    return encode_varint(len(values)) + b"".join(map(_text, values))


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
}


def encode_rows(columns: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> bytes:
    """Encode rows as RowBinary.

    Args:
        columns: Letters for the type of each column: B, I, Q unsigned integers of 8, 32, 64 bits; q Int64 (and DateTime64); d Float64; s
            String of text; b String of bytes; f FixedString; a Array(String). A tuple has one for each of its items.
        rows: Values in that order, tuples spread out.
    """
    encoders = [_ENCODERS[letter] for letters in columns.values() for letter in letters]
    # Row by row: a list of all fields of all rows would take ten times the memory.
    return b"".join([b"".join([encode(value) for encode, value in zip(encoders, row, strict=True)]) for row in rows])
