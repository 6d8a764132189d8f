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
_UNKNOWN: Final = NEVER, NEVER, -NEVER
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
        self._began: dict[tuple[int, str], tuple[int, int, int]] = {}
        """First step, time of the first step, and a step that is not below the first step of any metric."""

        self.described = KeyTable(_DESCRIBED)
        self.index = SeriesIndex(connection, log)
        self.names = NameLimit(connection)

    def is_changed(self, process: ProcessUpdate) -> bool:
        """Return whether a process's name or resource differs from the last one written."""
        return self._names.get((process.run, process.source.process)) != _name(process)

    def begins_earlier(self, process: ProcessUpdate) -> bool:
        """Return whether the start of a process of a later attempt or the first step of any of its metrics may have changed."""
        step, began, highest = self._began.get((process.run, process.source.process), _UNKNOWN)
        if process.first_step < step or process.began < began:
            return True
        return process.first_step != NEVER and (process.has_new_series or process.first_step < highest)

    def remember(self, written: Iterable[ProcessUpdate]) -> None:
        """Add the names and attempt starts of updates that have been written."""
        if len(self._names) > _CACHED:
            self._names.clear()
            self._began.clear()
        for process in written:
            key = process.run, process.source.process
            self._names[key] = _name(process)
            if process.began != NEVER:
                step, began, highest = self._began.get(key, _UNKNOWN)
                # Without a cached start, the first steps of the stored series are unknown.
                if process.has_new_series or step == NEVER:
                    highest = max(highest, process.last_step)
                self._began[key] = min(step, process.first_step), min(began, process.began), highest

    def forget(self) -> None:
        """Clear the cache after a failure, when it is unknown which rows were written or survived."""
        self._names.clear()
        self._began.clear()
        self.described.clear()
        self.index.forget()
        self.names.forget()


def _name(process: ProcessUpdate) -> int:
    return hash((process.source.name, process.source.resource))
