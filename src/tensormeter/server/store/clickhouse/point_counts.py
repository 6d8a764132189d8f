"""Counts and sums of stored points, computed on request and cached for idle runs.

The tables do not contain these counts, because a retry may write a commit twice. Stored counts would then be too high,
whereas a point that is written twice remains one point.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from tensormeter.server.store.clickhouse.connection import Connection, numbers
from tensormeter.server.store.clickhouse.name_filter import is_named

__all__ = ["MetricCounts", "PointCounts"]

_IDLE: Final = 600 * 10**9
"""Nanoseconds without an arrival after which a run's counts are cached.

This is longer than a commit takes, plus the difference between server clocks.
"""

_KEPT: Final = 3600 * 10**9
"""Nanoseconds after which cached counts are computed again, because retention removes points."""

_CACHED: Final = 200_000
"""Maximum number of cached counts. They take up to 50 MB."""

_NAME: Final = 64
"""Number of characters in requested metric names that take as much cache space as one count."""

_NUMBERS: Final = (
    "SELECT run, series, count() AS points, countIf(NOT isNaN(value)) AS present, sumIf(value, NOT isNaN(value)) AS total"
    " FROM points FINAL PREWHERE {of_run}{of_series} GROUP BY run, series"
)
_NAMES: Final = "SELECT DISTINCT run, series, metric FROM catalog WHERE {of_run}{of_metric}"


class MetricCounts(NamedTuple):
    """Number of a metric's points, with the number (`present`) and sum (`total`) of those that are not NaN."""

    points: int = 0
    present: int = 0
    total: float = 0.0


class PointCounts:
    """Counter of stored points, with a cache. Thread-safe.

    The argument `updated` of each method is the time of a run's last arrival, in nanoseconds since the Unix epoch. The
    methods that count several runs take a mapping from runs to these times.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._cached: dict[Hashable, dict[Any, Any]] = {}
        self._size = 0

    def of_runs(self, updated: Mapping[int, int]) -> dict[int, int]:
        """Return the number of points of each run, including distributions."""
        counts = self._counts("runs", updated, lambda runs: self._of_tables(runs, "run, ''"))
        return {run: sum(of_run.values()) for run, of_run in counts.items()}

    def of_series(self, run: int, updated: int) -> dict[int, int]:
        """Return the number of points of each series of a run."""
        return self._counts("series", {run: updated}, lambda runs: self._of_tables(runs, "run, series"))[run]

    def of_some_series(self, run: int, series: Collection[int]) -> dict[int, int]:
        """Return the number of points of the given series of a run, without the cache."""
        if not series:
            return {}
        rows = self._of_tables((run,), "run, series", f" AND series IN ({numbers(series)})")
        return {key: points for _, key, points in rows}

    def of_metrics(
        self, updated: Mapping[int, int], metrics: Collection[str] | None
    ) -> dict[int, dict[str, MetricCounts]]:
        """Return the counts of each run by metric, for the given metrics or for all."""
        names = None if metrics is None else sorted(metrics)

        def count(runs: Collection[int]) -> Iterable[tuple[int, str, MetricCounts]]:
            of_run = f"run IN ({numbers(runs)})"
            named, parameters = is_named(names)
            of_metric = f" AND {named}"
            of_series = (
                "" if names is None else f" AND series GLOBAL IN (SELECT series FROM catalog WHERE {of_run}{of_metric})"
            )
            rows = self._connection.rows(
                "SELECT run, metric, sum(points), sum(present), reinterpretAsInt64(sum(total))"
                f" FROM ({_NUMBERS.format(of_run=of_run, of_series=of_series)}) AS counted"
                f" GLOBAL ANY INNER JOIN ({_NAMES.format(of_run=of_run, of_metric=of_metric)}) AS named USING (run, series)"
                " GROUP BY run, metric",
                **parameters,
            )
            for run, metric, points, present, total in rows:
                yield run, metric, MetricCounts(points, present, float(np.int64(total).view(np.float64)))

        return self._counts(("metrics", names and tuple(names)), updated, count)

    def _of_tables(self, runs: Collection[int], key: str, only: str = "") -> Iterable[tuple[int, Any, int]]:
        tables = (
            f"SELECT {key} AS key, count() AS points FROM {table} FINAL WHERE run IN ({numbers(runs)}){only} GROUP BY run, key"
            for table in ("points", "distributions")
        )
        rows = self._connection.rows(
            f"SELECT run, key, sum(points) FROM ({' UNION ALL '.join(tables)}) GROUP BY run, key"
        )
        return ((run, name, points) for run, name, points in rows)

    def _counts(
        self,
        kind: Hashable,
        updated: Mapping[int, int],
        count: Callable[[Collection[int]], Iterable[tuple[int, Any, Any]]],
    ) -> dict[int, dict[Any, Any]]:
        """Return counts by run and key from the cache, or else from `count`, which yields (run, key, counts)."""
        now = time.time_ns()
        keys = {run: (kind, run, moment, now // _KEPT) for run, moment in updated.items()}
        with self._lock:
            counts = {run: self._cached[key] for run, key in keys.items() if key in self._cached}
        missing = keys.keys() - counts.keys()
        if not missing:
            return counts
        read: dict[int, dict[Any, Any]] = defaultdict(dict)
        for run, name, value in count(missing):
            read[run][name] = value
        counts |= {run: read[run] for run in missing}
        names = len(str(kind)) // _NAME
        with self._lock:
            for run in missing:
                if updated[run] < now - _IDLE:
                    size = 1 + names + len(read[run])
                    self._size += size
                    if self._size > _CACHED:
                        self._cached.clear()
                        self._size = size
                    self._cached[keys[run]] = read[run]
        return counts
