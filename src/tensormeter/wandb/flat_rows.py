"""Names with dots for the values of nested mappings, as in W&B: `{"train": {"loss": 1}}` is `train.loss`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from tensormeter.conventions.limits import METRIC_NAMES, NESTED_MAPPINGS, TABLE_IMAGES
from tensormeter.record.media.image import Image
from tensormeter.record.nested_values import plain_key
from tensormeter.wandb.notices import warn_once

__all__ = ["NOTHING", "NUMBERS", "flatten", "readable"]

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
"""The data of a log call without arguments, which only commits."""

NUMBERS: Final = frozenset({float, int, bool})
"""Types of values that need no conversion."""

_LISTS: Final = frozenset({list, tuple})


def flatten(data: Any) -> dict[str, Any] | None:
    """Return the values of nested mappings by name, or None if the data is not a mapping that can be read.

    Inner mappings that cannot be read, that contain themselves, or that are too many stay as they are. The recorder warns about
    them and counts them. Longer lists of images than the recorder accepts are shortened, as W&B does.
    """
    flat: dict[str, Any] = {}
    if not issubclass(type(data), Mapping) or not _add(flat, data, "", ()):
        return None
    for key, value in flat.items():
        if type(value) in _LISTS and len(value) > TABLE_IMAGES and isinstance(value[0], Image):
            flat[key] = value[:TABLE_IMAGES]
            warn_once(
                ("images", key),
                "%s: only the first %d of %d images are recorded; log fewer at a time",
                *(key, TABLE_IMAGES, len(value)),
            )
    return flat


def readable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers and texts among the values, as Python objects. Tensors are left out, because reading them may wait."""
    plain = {
        key: value.item() if type(value).__module__ == "numpy" and getattr(value, "size", 0) == 1 else value
        for key, value in values.items()
    }
    return {key: value for key, value in plain.items() if type(value) in NUMBERS or type(value) is str}


def _add(flat: dict[str, Any], values: Mapping[Any, Any], prefix: str, above: tuple[int, ...]) -> bool:
    """Add the values of a mapping. Return whether it can be read."""
    try:
        pairs = dict(values)
    except Exception:  # the mapping's own code may raise anything
        return False
    for key, value in pairs.items():
        name = f"{prefix}{plain_key(key)}" if prefix else plain_key(key)
        is_inner = issubclass(type(value), Mapping) and id(value) not in above and len(above) < NESTED_MAPPINGS
        if not (is_inner and len(flat) < METRIC_NAMES and _add(flat, value, f"{name}.", (*above, id(value)))):
            flat[name] = value
    return True
