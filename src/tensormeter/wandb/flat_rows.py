"""Names with dots for the values of nested mappings, as in W&B: `{"train": {"loss": 1}}` is `train.loss`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from tensormeter.conventions.limits import METRIC_NAMES, NESTED_MAPPINGS
from tensormeter.record.nested_values import plain_key
from tensormeter.wandb.notices import warn_once

__all__ = ["NOTHING", "NUMBERS", "flatten"]

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
"""The data of a log call without arguments, which only commits."""

NUMBERS: Final = frozenset({float, int, bool})
"""Types of values that need no conversion."""


def flatten(data: Any) -> dict[str, Any] | None:
    """Return the values of nested mappings by name, or None if the data is not a mapping that can be read."""
    try:
        pairs = list(data.items()) if isinstance(data, Mapping) else None
    except Exception:  # the mapping's own code may raise anything, and the recorder warns about it
        pairs = None
    if pairs is None:
        return None
    if not any(isinstance(value, Mapping) for _, value in pairs):
        return dict(pairs)
    flat: dict[str, Any] = {}
    _add(flat, data, "", 0)
    return flat


def _add(flat: dict[str, Any], values: Mapping[Any, Any], prefix: str, depth: int) -> None:
    for key, value in list(values.items()):
        name = f"{prefix}{plain_key(key)}" if prefix else plain_key(key)
        if not isinstance(value, Mapping):
            if len(flat) < METRIC_NAMES:
                flat[name] = value
        elif depth < NESTED_MAPPINGS:
            _add(flat, value, f"{name}.", depth + 1)
        else:
            warn_once(
                ("depth", name), "%s is not recorded: mappings are nested more than %d times", name, NESTED_MAPPINGS
            )
