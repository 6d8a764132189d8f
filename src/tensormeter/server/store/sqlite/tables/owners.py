"""Lookup of the process and the metric of series by row ID, with a small cache."""

import json
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.sqlite.points.number_parts import Owner
from tensormeter.server.store.sqlite.transaction import mapped_errors

__all__ = ["OwnerCache"]

_CACHED: Final = 50_000
"""Maximum number of series in the cache, which takes some 200 bytes each."""


class OwnerCache:
    """The lookup. Any thread may use it. Points are in memory only after their series has been committed."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        """Create a lookup that opens a connection with `connect` when it first needs one."""
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._cache: dict[int, Owner] = {}

    def find(self, series: Sequence[int]) -> Mapping[int, Owner]:
        """Return the owners of series, by row ID.

        The checksums of the rows are not verified, because a damaged row must not stop flushes of other series. Reads of the run
        report the damage.

        Raises:
            DamagedError: A row is missing.
            StoreUnavailableError: The file cannot be read.
        """
        with self._lock:
            missing = [row for row in series if row not in self._cache]
            read = self._read(missing) if missing else {}
            owners = {row: read[row] if row in read else self._cache[row] for row in series}
            if len(self._cache) + len(read) > _CACHED:
                self._cache.clear()
            if len(read) <= _CACHED:
                self._cache.update(read)
        return owners

    def close(self) -> None:
        """Close the connection. Waits for a running lookup."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _read(self, series: Sequence[int]) -> dict[int, Owner]:
        try:
            with mapped_errors("read"):
                if self._connection is None:
                    self._connection = self._connect()
                rows = self._connection.execute(
                    "SELECT series.id, process, metric FROM json_each(?) JOIN series ON series.id = json_each.value",
                    (json.dumps([*series]),),
                ).fetchall()
        except BaseException:
            if self._connection is not None:  # its descriptors may be stale
                self._connection.close()
                self._connection = None
            raise
        owners = {row[0]: (row[1], row[2]) for row in rows}
        absent = next((row for row in series if row not in owners), None)
        if absent is not None:
            raise DamagedError(f"the row of series {absent} is missing", series=absent)
        return owners
