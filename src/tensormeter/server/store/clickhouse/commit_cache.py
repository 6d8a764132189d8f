"""A cache of data that this server has committed."""

from collections.abc import Iterable
from typing import Final

from tensormeter.server.store.clickhouse.arrival_log import Log
from tensormeter.server.store.clickhouse.connection import Connection
from tensormeter.server.store.clickhouse.process_updates import NEVER, ProcessUpdate
from tensormeter.server.store.clickhouse.series_index import SeriesIndex
from tensormeter.server.store.clickhouse.series_limits import NameLimit
from tensormeter.server.store.rules.key_table import KeyTable

__all__ = ["CommitCache"]

_CACHED: Final = 200_000
_DESCRIBED: Final = 5_000_000
"""Maximum number of series whose rows in the table `catalog` are remembered. They take up to 200 MB."""


class CommitCache:
    """A cache of names, attempt starts and series, so that commits need not write or compute them again.

    Only one commit uses the cache at a time. Correctness does not depend on the cache, because a commit rewrites rows
    that are not cached.

    Attributes:
        described: Keys of the series whose names and descriptions are stored, by `Stretches.described`.
        index: Index of the stored series.
        names: Limit on the number of names in a run.
    """

    def __init__(self, connection: Connection, log: Log) -> None:
        self._names: dict[tuple[int, str], int] = {}
        self._began: dict[tuple[int, str], tuple[int, int]] = {}
        self.described = KeyTable(_DESCRIBED)
        self.index = SeriesIndex(connection, log)
        self.names = NameLimit(connection)

    def is_changed(self, process: ProcessUpdate) -> bool:
        """Return whether a process's name or resource differs from the last one written."""
        return self._names.get((process.run, process.source.process)) != _name(process)

    def begins_earlier(self, process: ProcessUpdate) -> bool:
        """Return whether a process of a later attempt has no cached start, or begins before its cached start."""
        step, began = self._began.get((process.run, process.source.process), (NEVER, NEVER))
        return process.first_step < step or process.began < began

    def remember(self, written: Iterable[ProcessUpdate]) -> None:
        """Add the names and attempt starts of updates that have been written."""
        if len(self._names) > _CACHED:
            self._names.clear()
            self._began.clear()
        for process in written:
            key = process.run, process.source.process
            self._names[key] = _name(process)
            if process.began != NEVER:
                known = self._began.get(key, (NEVER, NEVER))
                self._began[key] = min(known[0], process.first_step), min(known[1], process.began)

    def forget(self) -> None:
        """Clear the cache after a failure, when it is unknown which rows were written or survived."""
        self._names.clear()
        self._began.clear()
        self.described.clear()
        self.index.forget()
        self.names.forget()


def _name(process: ProcessUpdate) -> int:
    return hash((process.source.name, process.source.resource))
