"""Names of nested values: keys joined by slashes, as in `train/loss`."""

import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

__all__ = ["flatten"]


def flatten(
    values: Mapping[Any, Any], *, levels: int = 100, longest: int = sys.maxsize, most: int | None = None
) -> dict[str, Any]:
    """Return a copy of a nested mapping with one level. Empty mappings are left out.

    Args:
        values: Values by key.
        levels: Maximum number of nested levels. Deeper mappings become values.
        longest: Maximum length of a name in characters. Values with longer names are left out.
        most: Maximum number of values. Further ones are left out. Default: any number.
    """
    return dict(islice(_pairs(values, "", levels, longest), most))


def _pairs(values: Mapping[Any, Any], prefix: str, levels: int, longest: int) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if len(name) > longest:  # also of mappings, because each name in them would take as long
            continue
        if isinstance(value, Mapping) and levels:
            yield from _pairs(value, f"{name}/", levels - 1, longest)
        else:
            yield name, value
