"""A table in memory that maps 128-bit hashes to row IDs, at 24 bytes per slot."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["KeyTable"]

_LOAD: Final = 0.6
_SMALLEST: Final = 1 << 10


class KeyTable:
    """A hash table with open addressing, whose methods work on many keys at once. Not thread-safe.

    The keys must be random bits, such as those of a keyed hash. If the table is full, it starts again empty: it is a cache.
    """

    def __init__(self, most: int) -> None:
        """Create an empty table that holds up to `most` keys."""
        self._most = most
        self.clear()

    def __len__(self) -> int:
        return self._used

    def clear(self) -> None:
        """Remove all keys."""
        self._used = 0
        self._allocate(_SMALLEST)

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the row ID of each key, given with shape (n, 2), or 0 for keys that the table lacks."""
        rows = np.zeros(len(keys), np.int64)
        low, high = keys[:, 0], keys[:, 1]
        slots = (high & self._mask).astype(np.int64)
        waiting = np.arange(len(keys))
        while len(waiting):
            stored = self._rows[slots]
            same = (self._low[slots] == low[waiting]) & (self._high[slots] == high[waiting]) & (stored != 0)
            rows[waiting[same]] = stored[same]
            more = ~same & (stored != 0)
            waiting = waiting[more]
            slots = (slots[more] + 1) & self._mask_signed
        return rows

    def add(self, keys: NDArray[np.uint64], rows: NDArray[np.int64]) -> None:
        """Add keys that the table lacks, with their row IDs, which must not be 0. The keys must be distinct."""
        if self._used + len(keys) > self._most:
            self.clear()
            keys, rows = keys[: self._most], rows[: self._most]
        size = len(self._rows)
        while self._used + len(keys) > size * _LOAD:
            size *= 2
        if size > len(self._rows):
            old = self._rows != 0
            pairs = np.column_stack([self._low[old], self._high[old]]), self._rows[old]
            self._allocate(size)
            self._insert(*pairs)
        self._insert(keys, rows)
        self._used += len(keys)

    def _allocate(self, size: int) -> None:
        self._low, self._high = np.zeros(size, np.uint64), np.zeros(size, np.uint64)
        self._rows = np.zeros(size, np.int64)
        self._mask, self._mask_signed = np.uint64(size - 1), np.int64(size - 1)

    def _insert(self, keys: NDArray[np.uint64], rows: NDArray[np.int64]) -> None:
        waiting = np.arange(len(keys))
        slots = (keys[:, 1] & self._mask).astype(np.int64)
        while len(waiting):
            free = np.flatnonzero(self._rows[slots] == 0)
            taken, first = np.unique(slots[free], return_index=True)  # several keys may have found the same free slot
            placed = free[first]
            added = waiting[placed]
            self._low[taken], self._high[taken], self._rows[taken] = keys[added, 0], keys[added, 1], rows[added]
            left = np.ones(len(waiting), np.bool_)
            left[placed] = False
            waiting = waiting[left]
            slots = (slots[left] + 1) & self._mask_signed
