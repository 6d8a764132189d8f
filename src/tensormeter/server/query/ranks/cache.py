"""Statistics over processes, of which the expensive ones are remembered and grown: a page that is open asks again and again."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Final

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.query.points.variant import OneVariant
from tensormeter.server.query.ranks.reader import RankReading
from tensormeter.server.query.ranks.statistics import RankStatistics, rank_statistics
from tensormeter.server.query.reader import RunReader
from tensormeter.server.query.request import RunQuery
from tensormeter.server.store import MAX_READ_POINTS, RunRef, Store, TooManyPointsError

__all__ = ["RankMemory"]

_WHOLE_POINTS: Final = 1_000_000
"""Points, those of x among them, that are all read, each time."""

_LIFETIME: Final = 600.0
"""Seconds after which everything is read anew: points may have been removed, by retention."""

_MOST_BYTES: Final = 128 << 20


@dataclass(eq=False)
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    reading: RankReading | None = None
    made: float = 0.0


_Key = tuple[str | None, RunRef, RunQuery]


class RankMemory:
    """Answers questions about one store. Any number of threads; those that ask the same wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()

    def query(
        self, store: Store, ref: RunRef, query: RunQuery, *, project: str | None, check: Check = no_check
    ) -> RankStatistics:
        """Statistics of a metric over a run's processes: those of `rank_statistics`, or where there are too many points of `RankReading`.

        Args:
            store: As whoever asks may see it.
            ref: The run.
            query: What is asked for.
            check: Called for each series; whatever it raises ends the work.
            project: What whoever asks may see, if that is one project alone: others mean other runs by the same `ref`.

        Raises:
            TooManyPointsError: There are more points to look at than one request may have.
            StoreError: As `Store.read`.
        """
        key = project, ref, query
        with self._lock:
            known = key in self._entries
        if not known:
            limit = _WHOLE_POINTS if query.axis.is_time or query.axis.is_step else MAX_READ_POINTS
            try:
                reading = RunReader(store, ref, query, check).lines(limit)
                variant = OneVariant(query.variant)
                lines = [line for line in reading.lines if variant.takes(line.series)]
                statistics = rank_statistics(lines, query.max_points, check)
                return replace(statistics, variant=variant.variant, others=tuple(variant.others))
            except TooManyPointsError:
                if limit == MAX_READ_POINTS:
                    raise
        return self._grown(store, key, check)

    def _grown(self, store: Store, key: _Key, check: Check) -> RankStatistics:
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
        with entry.lock:
            now = time.monotonic()
            reading = entry.reading
            if reading is None or now - entry.made > _LIFETIME or not reading.grow(store, check):
                entry.reading = None
                reading = RankReading(store, *key[1:], check)
                entry.reading, entry.made = reading, now
            found = reading.statistics()
        self._forget_oldest()
        return found

    def _forget_oldest(self) -> None:
        with self._lock:
            held = sum(entry.reading.size for entry in self._entries.values() if entry.reading is not None)
            while held > _MOST_BYTES and len(self._entries) > 1:
                _, entry = self._entries.popitem(last=False)
                held -= entry.reading.size if entry.reading is not None else 0
