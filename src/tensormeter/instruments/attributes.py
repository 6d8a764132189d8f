"""Attribute sets, as they are recorded."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tensormeter.instruments.registry import warn_once

__all__ = ["OVERFLOW", "AttributeSet", "clean_attributes", "equals_by_content", "plain_text"]

AttributeSet = tuple[tuple[str, Any], ...]
"""(key, value) pairs in order of the keys; values are `str`, `bool`, `int`, `float`, or tuples of those."""

OVERFLOW: Final[AttributeSet] = (("otel.metric.overflow", True),)

_SCALARS: Final = (str, bool, int, float)

_CONTENT: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
)
"""What a value of a subclass is, whatever the subclass makes of `str()` and its like: an enumeration's member is its value."""


def clean_attributes(attributes: Any) -> AttributeSet:
    """Make an attribute set of a mapping. What cannot be recorded is left out, with one warning for each key."""
    if attributes is None:
        return ()
    if not isinstance(attributes, Mapping):
        warn_once((AttributeSet, type(attributes)), "attributes: expected a mapping, got %s", type(attributes).__name__)
        return ()
    found = {}
    for key, value in attributes.items():
        if not isinstance(key, str) or not str.__len__(key):
            warn_once((AttributeSet, repr(key)), "attributes: expected a key that is a non-empty str, got %r", key)
            continue
        name = str.__str__(key)
        try:
            cleaned = _clean(value)
        except Exception:  # the value's own code, or a sequence that contains itself
            cleaned = None
        if cleaned is None:
            warn_once(
                (AttributeSet, name),
                "attribute %r is left out: expected a str, bool, int, float or a sequence of those, got %s",
                name,
                type(value).__name__,
            )
            continue
        found[name] = cleaned
    return tuple(sorted(found.items()))


def plain_text(text: object) -> str:
    """The content of a text, whatever its type makes of `str()`; "" if there is none; of anything else its `str()`."""
    if isinstance(text, str):
        return str.__str__(text)
    return "" if text is None else str(text)


def equals_by_content(kind: type) -> bool:
    """Whether equal values of a type have equal content: it is a plain type, or compares and hashes as one, as most
    enumerations do.
    """
    if kind in _SCALARS:
        return True
    return any(
        issubclass(kind, plain) and all(getattr(kind, name) is getattr(plain, name) for name in ("__eq__", "__hash__"))
        for plain, _ in _CONTENT
    )


def _clean(value: Any) -> Any:
    """The value of an attribute as a plain type; None if it cannot be one."""
    if type(value) in _SCALARS:
        return value
    for kind, content in _CONTENT:
        if isinstance(value, kind):
            return content(value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        items = tuple(map(_clean, value))
        return None if None in items else items
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0:
        # A long double has no Python type, and its `item` gives a long double.
        return _clean(float(value) if value.dtype.kind == "f" else value.item())
    return None
