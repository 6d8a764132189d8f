"""A cache of statistics over processes. Open web pages repeat queries, so the cache keeps and extends expensive results."""

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.query.points.reader import RunReader
from tensormeter.server.query.points.request import RunQuery
from tensormeter.server.query.points.variant import VariantSelector
from tensormeter.server.query.ranks.reader import RankReader
from tensormeter.server.query.ranks.statistics import RankStatistics, rank_statistics
from tensormeter.server.store import MAX_READ_POINTS, ProcessAttempt, RunRef, Selection, Store, TooManyPointsError

__all__ = ["RankCache"]

_WHOLE_POINTS: Final = 1_000_000
"""Maximum number of points, including x values, for which statistics are exact. New points make all be read again."""

_LIFETIME: Final = 600.0
"""Seconds after which all points are read again, because retention may have removed some of them."""

_MAX_BYTES: Final = 128 << 20


_MAX_EXACT: Final = 32
"""Maximum number of exact statistics to keep."""


@dataclass(frozen=True, eq=False)
class _Exact:
    """Exact statistics, with the state of the run when they were read."""

    statistics: RankStatistics
    created: float
    started: int
    attempts: Mapping[str, ProcessAttempt]
    cursor: str


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
        self._exact: OrderedDict[_Key, _Exact] = OrderedDict()

    def query(
        self, store: Store, ref: RunRef, query: RunQuery, *, project: str | None, check: Check = no_check
    ) -> RankStatistics:
        """Return statistics of a metric over a run's processes. They are exact only if there are few points."""
        key = project, ref, query
        with self._lock:
            cached, exact = key in self._entries, self._exact.get(key)
        if exact is not None and _is_current(exact, store, ref, query, check):
            return exact.statistics
        if not cached:
            limit = _WHOLE_POINTS if query.axis.is_time or query.axis.is_step else MAX_READ_POINTS
            try:
                return self._query_exact(store, key, limit, check)
            except TooManyPointsError:
                if limit == MAX_READ_POINTS:
                    raise
        return self._query_cached(store, key, check)

    def _query_exact(self, store: Store, key: _Key, limit: int, check: Check) -> RankStatistics:
        _, ref, query = key
        run = store.read(ref, Selection([], shadowing=query.metrics))
        reading = RunReader(store, ref, query, check).lines(limit)
        variant = VariantSelector(query.variant)
        lines = [line for line in reading.lines if variant.accepts(line.series)]
        statistics = rank_statistics(lines, query.max_points, check)
        statistics = replace(statistics, variant=variant.variant, others=tuple(variant.others))
        with self._lock:
            self._exact[key] = _Exact(statistics, time.monotonic(), run.started, run.attempts, run.cursor)
            self._exact.move_to_end(key)
            if len(self._exact) > _MAX_EXACT:
                self._exact.popitem(last=False)
        return statistics

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


def _is_current(exact: _Exact, store: Store, ref: RunRef, query: RunQuery, check: Check) -> bool:
    """Return whether no points have arrived since these statistics were read."""
    if time.monotonic() - exact.created > _LIFETIME:
        return False
    run = store.read(ref, Selection([], shadowing=query.metrics))
    if (run.started, run.attempts) != (exact.started, exact.attempts):
        return False
    metrics = [*query.metrics] if query.axis.metric is None else [*query.metrics, query.axis.metric]
    try:
        new = store.read(ref, Selection(metrics, after=exact.cursor, limit=0, check=check))
    except TooManyPointsError:  # the store no longer knows which points are new
        return False
    return not new.complete and not new.series
