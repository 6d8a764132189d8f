"""Encoding of columns in ClickHouse's Native format, which ClickHouse reads several times as fast as rows."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.varint import encode_varint

__all__ = ["NativeBlock", "NativeColumn", "encode_columns", "encode_texts"]


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


def encode_texts(values: Iterable[str | bytes]) -> bytes:
    """Encode the values of a column of type String."""
    return b"".join([_text(value) for value in values])


def _text(value: str | bytes) -> bytes:
    encoded = value.encode("utf-8", "replace") if isinstance(value, str) else value
    return encode_varint(len(encoded)) + encoded
