"""A cache of statistics over processes. Open web pages repeat queries, so the cache keeps and extends expensive results."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Final

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.query.points.reader import RunReader
from tensormeter.server.query.points.request import RunQuery
from tensormeter.server.query.points.variant import VariantSelector
from tensormeter.server.query.ranks.reader import RankReader
from tensormeter.server.query.ranks.statistics import RankStatistics, rank_statistics
from tensormeter.server.store import MAX_READ_POINTS, RunRef, Store, TooManyPointsError

__all__ = ["RankCache"]

_WHOLE_POINTS: Final = 1_000_000
"""Maximum number of points, including x values, for which statistics are exact and not cached."""

_LIFETIME: Final = 600.0
"""Seconds after which all points are read again, because retention may have removed some of them."""

_MAX_BYTES: Final = 128 << 20


@dataclass(eq=False)
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    reader: RankReader | None = None
    created: float = 0.0


_Key = tuple[str | None, RunRef, RunQuery]


class RankCache:
    """Cached statistics over the processes of runs. Thread-safe; identical queries wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()

    def query(
        self, store: Store, ref: RunRef, query: RunQuery, *, project: str | None, check: Check = no_check
    ) -> RankStatistics:
        """Return statistics of a metric over a run's processes. They are exact only if there are few points."""
        key = project, ref, query
        with self._lock:
            cached = key in self._entries
        if not cached:
            limit = _WHOLE_POINTS if query.axis.is_time or query.axis.is_step else MAX_READ_POINTS
            try:
                reading = RunReader(store, ref, query, check).lines(limit)
                variant = VariantSelector(query.variant)
                lines = [line for line in reading.lines if variant.accepts(line.series)]
                statistics = rank_statistics(lines, query.max_points, check)
                return replace(statistics, variant=variant.variant, others=tuple(variant.others))
            except TooManyPointsError:
                if limit == MAX_READ_POINTS:
                    raise
        return self._query_cached(store, key, check)

    def _query_cached(self, store: Store, key: _Key, check: Check) -> RankStatistics:
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
        with entry.lock:
            now = time.monotonic()
            reader = entry.reader
            if reader is None or now - entry.created > _LIFETIME or not reader.update(store, check):
                entry.reader = None
                reader = RankReader(store, *key[1:], check)
                entry.reader, entry.created = reader, now
            statistics = reader.statistics()
        self._evict_oldest()
        return statistics

    def _evict_oldest(self) -> None:
        with self._lock:
            size = sum(entry.reader.size for entry in self._entries.values() if entry.reader is not None)
            while size > _MAX_BYTES and len(self._entries) > 1:
                _, entry = self._entries.popitem(last=False)
                size -= entry.reader.size if entry.reader is not None else 0
