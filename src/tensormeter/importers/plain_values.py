"""Conversion of values from other trackers' files to values that OTLP can hold, with limits on depth and size."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tensormeter.conventions.limits import CONFIG_BYTES
from tensormeter.otlp.batch import Value

__all__ = ["plain_document", "plain_value"]

_DEEPEST: Final = 32
_LONGEST: Final = CONFIG_BYTES
"""Maximum number of entries of a list or mapping, and of characters of the text that replaces a value.

Longer ones would not fit into a configuration anyway, which counts them.
"""


def plain_document(values: Mapping[Any, Any]) -> dict[str, Value]:
    """Convert a mapping, such as a configuration. Keys become strings."""
    return {str(key): plain_value(value, 1) for key, value in list(values.items())[:_LONGEST]}


def plain_value(value: Any, depth: int = 0) -> Value:
    """Convert a value. Values of other types, and mappings and lists below 32 levels, become text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth < _DEEPEST:
        if isinstance(value, Mapping):
            return {str(key): plain_value(item, depth + 1) for key, item in list(value.items())[:_LONGEST]}
        if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
            return [plain_value(item, depth + 1) for item in value[:_LONGEST]]
        item = getattr(value, "item", None)  # a scalar of NumPy
        if callable(item) and getattr(value, "shape", None) == ():
            return plain_value(item(), depth + 1)
    return _text_of(value)


def _text_of(value: Any) -> str:
    try:
        return str(value)[:_LONGEST]
    except RecursionError:
        return f"({type(value).__name__})"
