"""Names of the entries of a config."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

__all__ = ["MAX_CONFIGS", "config_keys"]

MAX_CONFIGS: Final = 10_000
"""Number of runs, the newest first, whose configs are read for a list of keys."""

_MAX_LEVELS: Final = 100


def config_keys(config: Mapping[str, Any], levels: int = _MAX_LEVELS) -> Iterator[str]:
    """Yield the keys of a config. The keys of nested objects are joined with dots; empty objects count as values."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value and levels:
            for inner in config_keys(value, levels - 1):
                yield f"{key}.{inner}"
        else:
            yield key
