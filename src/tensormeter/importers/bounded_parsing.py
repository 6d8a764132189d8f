"""Parsing of documents whose contents are not trusted, with limits on what they expand into.

Two bytes of Protobuf can become an object of 60 bytes, and two bytes of JSON one of 100. Documents are therefore counted before
they are parsed. Small ones are not counted, because their expansion is small too.
"""

from typing import Any, Final

from google.protobuf.message import DecodeError

from tensormeter.errors import EncodingError
from tensormeter.otlp.document import parse_document
from tensormeter.otlp.varint import decode_varint

__all__ = ["MOST_FIELDS", "MOST_VALUES", "has_too_many_values", "parse_json", "parse_message"]

MOST_FIELDS: Final = 1_000_000
"""Maximum number of fields of a message. W&B's largest rows have 500,000 values."""

MOST_VALUES: Final = 2_000_000
"""Maximum number of values of a JSON document. The largest table has 700,000 cells."""

_SMALL: Final = 1 << 20
_VARINT, _LENGTH_DELIMITED = 0, 2
_FIXED: Final = {1: 8, 5: 4}
"""Bytes of fields by their wire type."""
_NUMBERS: Final = frozenset({1, 2, 3, 5, 8, 13})
"""Types of numbers in `message_schema`."""
_PACKED: Final = 16
"""Bytes of packed numbers that count as one field. A number has at least one byte here, and eight in memory."""


def parse_message(kind: Any, data: bytes) -> Any:
    """Parse a message of a class from `message_schema`.

    Raises:
        DecodeError: The bytes are not a message, or have too many fields.
    """
    if len(data) > _SMALL and not _has_few_fields(kind.DESCRIPTOR, memoryview(data)):
        raise DecodeError(f"more than {MOST_FIELDS:,} fields")
    return kind.FromString(data)


def parse_json(data: bytes | str) -> Any:
    """Parse JSON.

    Raises:
        EncodingError: The data is not JSON, or has too many values. See `parse_document`.
    """
    if has_too_many_values(data):
        raise EncodingError(f"more than {MOST_VALUES:,} values")
    return parse_document(data)


def has_too_many_values(data: bytes | str, limit: int | None = None) -> bool:
    """Return whether JSON may have too many values.

    Args:
        data: JSON. Punctuation within its texts counts as well.
        limit: Maximum number of values; default: `MOST_VALUES`.
    """
    if len(data) <= _SMALL:
        return False
    counts = map(data.count, ",[{") if isinstance(data, str) else map(data.count, (b",", b"[", b"{"))
    return sum(counts) > (MOST_VALUES if limit is None else limit)


def _has_few_fields(descriptor: Any, data: memoryview) -> bool:
    """Return whether a message, with the messages in it, has at most 1,000,000 fields. Damage ends the count of a message."""
    pending, count = [(descriptor, 0, len(data))], 0
    while pending:
        descriptor, at, end = pending.pop()
        fields = {number: field.message_type for number, field in descriptor.fields_by_number.items()}
        packed = {number for number, field in descriptor.fields_by_number.items() if field.type in _NUMBERS}
        while 0 <= at < end:
            count += 1
            tag, at = (data[at], at + 1) if data[at] < 0x80 else decode_varint(data, at, end)
            if tag & 7 == _LENGTH_DELIMITED:
                size, at = decode_varint(data, at, end)
                if at >= 0:
                    if fields.get(tag >> 3) is not None:
                        pending.append((fields[tag >> 3], at, min(at + size, end)))
                    elif tag >> 3 in packed:
                        count += size // _PACKED
                    at += size
            elif tag & 7 == _VARINT:
                _, at = decode_varint(data, at, end)
            else:
                at = at + _FIXED[tag & 7] if at >= 0 and tag & 7 in _FIXED else -1
            if count > MOST_FIELDS:
                return False
    return True
