"""Names of nested values: keys joined by slashes, as in `train/loss`."""

from collections.abc import Mapping
from typing import Any

__all__ = ["flatten"]


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a nested mapping with one level. Empty mappings are left out."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}/{inner}": item for inner, item in flatten(value).items()})
        else:
            flat[name] = value
    return flat
