"""ClickHouse's Native format, in columns, which ClickHouse reads several times as fast as rows, and writes faster, too."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.varint import decode_varint, encode_varint

__all__ = ["NativeBlock", "NativeColumn", "decode_columns", "encode_columns", "encode_texts"]


class NativeBlock(bytes):
    """One or more blocks in the Native format, as opposed to rows in the RowBinary format."""

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return "", because clickhouse-connect decodes all data of an INSERT to find out whether it is a SELECT."""
        return ""


NativeColumn = tuple[str, str, bytes | NDArray[np.generic]]
"""The name, the ClickHouse type and the values of a column. The values are an array, or encoded."""


def encode_columns(rows: int, columns: Sequence[NativeColumn]) -> NativeBlock:
    """Encode columns with `rows` values each. A tuple consists of the values of its items, one item after the other."""
    parts = [encode_varint(len(columns)), encode_varint(rows)]
    for name, kind, values in columns:
        parts += [_text(name), _text(kind), values if isinstance(values, bytes) else values.tobytes()]
    return NativeBlock(b"".join(parts))


def decode_columns(data: bytes, dtypes: Sequence[str]) -> list[NDArray[Any]]:
    """Decode the columns of any number of blocks, whose values have fixed sizes.

    Args:
        data: Blocks in the Native format.
        dtypes: NumPy type of each column.

    Raises:
        ValueError: The data does not consist of blocks with these columns.
    """
    parts: list[list[NDArray[Any]]] = [[np.empty(0, dtype)] for dtype in dtypes]
    view, position = memoryview(data), 0
    while position < len(data):
        columns, position = decode_varint(view, position, len(data))
        rows, position = decode_varint(view, position, len(data))
        if columns != len(dtypes):
            raise ValueError(f"the block has {columns} columns instead of {len(dtypes)}")
        for dtype, part in zip(dtypes, parts, strict=True):
            for _ in ("name", "type"):
                length, position = decode_varint(view, position, len(data))
                position += length
            part.append(np.frombuffer(data, dtype, rows, position))
            position += part[-1].nbytes
    return [np.concatenate(part) for part in parts]


def encode_texts(values: Iterable[str | bytes]) -> bytes:
    """Encode the values of a column of type String."""
    return b"".join([_text(value) for value in values])


def _text(value: str | bytes) -> bytes:
    encoded = value.encode("utf-8", "replace") if isinstance(value, str) else value
    return encode_varint(len(encoded)) + encoded
