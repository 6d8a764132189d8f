"""Paths to values in configurations, whose keys may contain dots."""

from collections.abc import Mapping
from typing import Any

__all__ = ["path_of"]


def path_of(config: Any, key: str) -> tuple[str, ...] | None:
    """Return the keys that lead to the value under a full key, or else at a dotted path; None if there is none.

    The last key on the path may contain dots, as in `{"opt": {"wd.x": 1}}`. A value that is None counts as missing.
    """
    path: list[str] = []
    while isinstance(config, Mapping):
        if key in config:
            return None if config[key] is None else (*path, key)
        part, _, key = key.partition(".")
        path.append(part)
        config = config.get(part)
    return None
