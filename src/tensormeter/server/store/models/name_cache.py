"""A cache of name tables with a limit on its memory."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Final

from tensormeter.server.store.models.names import NameTable

__all__ = ["NameCache"]

_MAX_BYTES: Final = 48 << 20


class NameCache:
    """A cache of name tables by key, which evicts the least recently used ones. Equal tables share memory. Thread-safe."""

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        """Create a cache.

        Args:
            max_bytes: Maximum size of all tables in bytes. The most recent table is kept even if it is larger.
        """
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, tuple[Any, NameTable]] = OrderedDict()

    def get(self, key: Hashable) -> tuple[Any, NameTable] | None:
        """Return the version and the table under a key, or None."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: Hashable, version: Any, table: NameTable) -> NameTable:
        """Keep a table under a key. Return it, or an equal table that is in the cache.

        Args:
            key: Key of the table.
            version: Value from which the caller can tell later whether the table is still current.
            table: Table to keep.
        """
        with self._lock:
            table = next((other for _, other in self._entries.values() if other.digest == table.digest), table)
            self._entries[key] = version, table
            self._entries.move_to_end(key)
            while len(self._entries) > 1 and self._size() > self._max_bytes:
                self._entries.popitem(last=False)
        return table

    def _size(self) -> int:
        return sum({id(table): table.nbytes for _, table in self._entries.values()}.values())
