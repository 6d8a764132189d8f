"""The limit on the number of metric names in a run."""

import sqlite3
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.number_blocks import hash_name
from tensormeter.server.store.rules import limits

__all__ = ["NameLimit"]

_CACHED: Final = 4_000_000
"""Maximum number of names in memory, which take 8 bytes each. The names of the latest run stay in memory in any case."""


class NameLimit:
    """The limit, for use inside the caller's transaction. Not thread-safe.

    A run that has no more series than names are allowed is within the limit. Hashes of the names of other runs are kept in
    memory, and are read from the file when series are first added after the start.
    """

    def __init__(self) -> None:
        self._names: OrderedDict[int, NDArray[np.uint64]] = OrderedDict()
        self._changed: set[int] = set()
        """Runs whose hashes contain names that may not have been committed."""

    def forget(self, *, everything: bool) -> None:
        """Clear the cache of runs to which names have been added, or of all runs, because rows may have disappeared."""
        for run in [*self._names] if everything else self._changed:
            self._names.pop(run, None)
        self._changed.clear()

    def refused(
        self, connection: sqlite3.Connection, run: int, series: int, metrics: Sequence[str]
    ) -> NDArray[np.bool_] | None:
        """Return which metrics of new series exceed the limit; None if all are within the limit.

        Args:
            connection: Connection to read with.
            run: Row ID of the run.
            series: Number of series in the run.
            metrics: Metric of each new series, with repetitions.
        """
        if series + len(metrics) <= limits.MAX_NAMES_PER_RUN and run not in self._names:
            return None
        known = self._known(connection, run)
        hashes = np.array([hash_name(metric) for metric in metrics], np.uint64)
        counted = np.array([not limits.is_reserved(metric) for metric in metrics], np.bool_)
        new = counted & ~_contains(known, hashes)
        distinct, first = np.unique(hashes[new], return_index=True)
        excess = distinct[np.argsort(first)[max(limits.MAX_NAMES_PER_RUN - len(known), 0) :]]
        return new & np.isin(hashes, excess) if len(excess) else None

    def add(self, run: int, metrics: Collection[str]) -> None:
        """Add the metrics of series that have been created, if the names of the run are in memory."""
        if run in self._names:
            known = self._names[run]
            hashes = np.array([hash_name(metric) for metric in metrics if not limits.is_reserved(metric)], np.uint64)
            new = np.unique(hashes[~_contains(known, hashes)])
            if len(new):
                self._changed.add(run)
                self._names[run] = np.insert(known, np.searchsorted(known, new), new)

    def _known(self, connection: sqlite3.Connection, run: int) -> NDArray[np.uint64]:
        known = self._names.get(run)
        if known is None:
            hashes = (hash_name(name) for name in _names(connection, run) if not limits.is_reserved(name))
            known = np.sort(np.fromiter(hashes, np.uint64))  # `np.unique` takes many times as long
            known = self._names[run] = known[np.diff(known, prepend=~known[:1]) != 0]
        self._names.move_to_end(run)
        while len(self._names) > 1 and sum(map(len, self._names.values())) > _CACHED:
            self._names.popitem(last=False)
        return known


def _names(connection: sqlite3.Connection, run: int) -> Iterator[str]:
    """Yield the names of a run's metrics, with repetitions."""
    earlier = ""
    for (process,) in connection.execute("SELECT id FROM process WHERE run = ?", (run,)).fetchall():
        # SQLite joins the names much faster than Python reads rows.
        series, text = connection.execute(
            "SELECT count(*), group_concat(metric, char(10)) FROM"
            " (SELECT metric FROM series WHERE process = ? ORDER BY metric)",
            (process,),
        ).fetchone()
        if not series or text == earlier:  # processes usually have the same names
            continue
        earlier = text
        if text.count("\n") == series - 1:
            yield from text.split("\n")
        else:  # a name contains a line feed
            rows = connection.execute("SELECT DISTINCT metric FROM series WHERE process = ?", (process,))
            yield from (row[0] for row in rows)


def _contains(known: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which hashes are among known ones, which are in ascending order."""
    if not len(known):
        return np.zeros(len(hashes), np.bool_)
    nearest: NDArray[np.uint64] = known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)]
    found: NDArray[np.bool_] = nearest == hashes
    return found
