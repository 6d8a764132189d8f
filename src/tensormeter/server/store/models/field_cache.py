"""A cache for the names of config keys and metrics in a project."""

import time
from collections.abc import Callable
from typing import Final

from tensormeter.server.store.models.name_cache import NameCache
from tensormeter.server.store.models.names import FieldKind, NameTable

__all__ = ["FieldCache"]

_AGE: Final = 5.0
"""Seconds for which names are kept at least."""

_SHARE: Final = 20.0
"""Names are kept for this multiple of the time that reading them took."""

_MAX_AGE: Final = 60.0


class FieldCache:
    """A cache for the names of fields. Names are at most a minute old. Thread-safe."""

    def __init__(self) -> None:
        self._tables = NameCache(16 << 20)

    def get(self, project: str | None, kind: FieldKind, load: Callable[[], NameTable]) -> NameTable:
        """Return the names of a project's fields, from the cache or else from `load`."""
        entry = self._tables.get((project, kind))
        started = time.monotonic()
        if entry is not None and started < entry[0]:
            return entry[1]
        table = load()
        now = time.monotonic()
        age = min(max(_AGE, _SHARE * (now - started)), _MAX_AGE)
        return self._tables.put((project, kind), now + age, table)
