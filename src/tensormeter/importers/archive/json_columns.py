"""JSON in an archive's columns."""

import json
from typing import Any

from tensormeter.importers.registry import SourceError

__all__ = ["parse_object", "parse_value"]


def parse_value(text: str | None) -> Any:
    """Parse a JSON value; None if there is none. Raises SourceError."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"invalid JSON ({error})") from None


def parse_object(text: str | None) -> dict[str, Any]:
    """Parse a JSON object; an empty one if there is none. Raises SourceError."""
    value = parse_value(text)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SourceError("invalid JSON (expected an object)")
    return value
