"""JSON in an archive's columns."""

import json
from typing import Any, Final

from tensormeter.importers.registry import SourceError

__all__ = ["parse_object", "parse_value"]


_FEW: Final = 20
_MOST_LEVELS: Final = 90
"""Maximum depth of protobuf messages in a value. Readers of protobuf refuse a request that has more than 100 levels."""


def parse_value(text: str | None) -> Any:
    """Parse a JSON value; None if there is none. Raises SourceError."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"invalid JSON ({error})") from None
    if text.count("[") + text.count("{") > _FEW and _levels(value) > _MOST_LEVELS:
        raise SourceError("invalid JSON (it has too many nested lists and objects)")
    return value


def parse_object(text: str | None) -> dict[str, Any]:
    """Parse a JSON object; an empty one if there is none. Raises SourceError."""
    value = parse_value(text)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SourceError("invalid JSON (expected an object)")
    return value


def _levels(value: Any) -> int:
    """Return the depth of the protobuf messages that represent a value: two for each list, and three for each object."""
    deepest = 0
    waiting = [(value, 1)]
    while waiting:
        item, levels = waiting.pop()
        deepest = max(deepest, levels)
        if isinstance(item, dict):
            waiting += [(part, levels + 3) for part in item.values() if isinstance(part, dict | list)]
        elif isinstance(item, list):
            waiting += [(part, levels + 2) for part in item if isinstance(part, dict | list)]
    return deepest
