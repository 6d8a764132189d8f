"""Conversion of attributes to attribute sets that can be recorded."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tensormeter.instruments.registry import warn_once

__all__ = ["OVERFLOW", "AttributeSet", "clean_attributes", "equals_by_content", "plain_text"]

AttributeSet = tuple[tuple[str, Any], ...]
"""Key-value pairs, sorted by key. A value is a `str`, `bool`, `int` or `float`, or a tuple of those."""

OVERFLOW: Final[AttributeSet] = (("otel.metric.overflow", True),)

_SCALARS: Final = (str, bool, int, float)

_CONTENT: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
)
"""Base types, each with a function that converts an instance of a subclass to the base type without calling overridden methods.
An enum member is converted to its value."""


def clean_attributes(attributes: Any) -> AttributeSet:
    """Convert a mapping to an attribute set. Omit entries that cannot be recorded, with one warning per key."""
    if attributes is None:
        return ()
    if not isinstance(attributes, Mapping):
        warn_once((AttributeSet, type(attributes)), "attributes: expected a mapping, got %s", type(attributes).__name__)
        return ()
    cleaned = {}
    for key, value in attributes.items():
        if not isinstance(key, str) or not str.__len__(key):
            warn_once((AttributeSet, repr(key)), "attributes: expected a non-empty str as a key, got %r", key)
            continue
        name = str.__str__(key)
        try:
            content = _clean(value)
        except Exception:  # raised by the value's own code, or by a sequence that contains itself
            content = None
        if content is None:
            warn_once(
                (AttributeSet, name),
                "dropped attribute %r: expected a str, bool, int, float or a sequence of these, got %s",
                name,
                type(value).__name__,
            )
            continue
        cleaned[name] = content
    return tuple(sorted(cleaned.items()))


def plain_text(text: object) -> str:
    """Convert an object to a plain `str`, and None to "". Ignore the `__str__` method of a `str` subclass."""
    if isinstance(text, str):
        return str.__str__(text)
    return "" if text is None else str(text)


def equals_by_content(kind: type) -> bool:
    """Return whether two values of this type that compare equal always have the same content.

    This is true for `str`, `bool`, `int` and `float`, and for subclasses that inherit their comparison and hash methods.
    """
    if kind in _SCALARS:
        return True
    return any(
        issubclass(kind, plain) and all(getattr(kind, name) is getattr(plain, name) for name in ("__eq__", "__hash__"))
        for plain, _ in _CONTENT
    )


def _clean(value: Any) -> Any:
    """Convert an attribute value to a type that can be recorded. Return None if the conversion is impossible."""
    if type(value) in _SCALARS:
        return value
    for kind, content in _CONTENT:
        if isinstance(value, kind):
            return content(value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        items = tuple(map(_clean, value))
        return None if None in items else items
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0:
        # Python has no long double type, so `item` would return another NumPy long double.
        return _clean(float(value) if value.dtype.kind == "f" else value.item())
    return None
