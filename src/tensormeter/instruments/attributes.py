"""Attribute sets, as they are recorded."""

from collections.abc import Mapping
from typing import Any, Final

from tensormeter.instruments.registry import warn_once

__all__ = ["OVERFLOW", "AttributeSet", "clean_attributes"]

AttributeSet = tuple[tuple[str, Any], ...]
"""(key, value) pairs in order of the keys; values are `str`, `bool`, `int`, `float`, or tuples of those."""

OVERFLOW: Final[AttributeSet] = (("otel.metric.overflow", True),)

_SCALARS: Final = (str, bool, int, float)


def clean_attributes(attributes: Any) -> AttributeSet:
    """What can be recorded of attributes; what cannot is warned about once for each key, and left out."""
    if attributes is None:
        return ()
    if not isinstance(attributes, Mapping):
        warn_once((AttributeSet, type(attributes)), "attributes: expected a mapping, got %s", type(attributes).__name__)
        return ()
    found = {}
    for key, value in attributes.items():
        if not isinstance(key, str) or not key:
            warn_once((AttributeSet, repr(key)), "attributes: expected a key that is a non-empty str, got %r", key)
            continue
        cleaned = _clean(value)
        if cleaned is None:
            warn_once(
                (AttributeSet, key),
                "attribute %r is left out: expected a str, bool, int, float or a sequence of those, got %s",
                key,
                type(value).__name__,
            )
            continue
        found[key] = cleaned
    return tuple(sorted(found.items()))


def _clean(value: Any) -> Any:
    """None if it is not an attribute's value."""
    if type(value) in _SCALARS:
        return value
    for kind in _SCALARS:
        if isinstance(value, kind):  # of a subclass, such as an enumeration's member
            return kind(value)
    if isinstance(value, (list, tuple)):
        items = tuple(map(_clean, value))
        return None if None in items else items
    item = getattr(value, "item", None)  # NumPy's scalars
    if type(value).__module__ == "numpy" and item is not None and getattr(value, "ndim", 1) == 0:
        return _clean(item())
    return None
