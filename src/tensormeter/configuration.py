"""A run's configuration: what a script gives as a mapping of anything, as JSON values."""

import json
from collections.abc import Mapping
from typing import Any, Final

from tensormeter.errors import SettingsError

__all__ = ["as_json"]

_MAX_DEPTH: Final = 24
"""Levels of a configuration: protobuf's decoders refuse messages nested a hundred deep, and OTLP takes three a level."""


def as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as JSON values.

    Raises:
        SettingsError: Not a mapping, or one that contains itself.
    """
    if not isinstance(config, Mapping):
        raise SettingsError(f"config: expected a mapping, got {type(config).__name__}")
    try:
        values = dict(json.loads(json.dumps({str(key): value for key, value in config.items()}, default=str)))
    except (ValueError, TypeError, RecursionError) as error:
        raise SettingsError(f"config: cannot be written as JSON ({error})") from None
    if _depth(values) > _MAX_DEPTH:
        raise SettingsError(f"config: nested deeper than {_MAX_DEPTH} levels; flatten it")
    return values


def _depth(value: object) -> int:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if items is None else 1 + max(map(_depth, items), default=0)
