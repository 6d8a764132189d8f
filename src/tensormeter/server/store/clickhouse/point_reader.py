"""Queries for the series of a run and their points."""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.server.store.clickhouse.arrival_log import Arrived, newest
from tensormeter.server.store.clickhouse.connection import Connection, numbers
from tensormeter.server.store.clickhouse.keys import invert
from tensormeter.server.store.clickhouse.name_filter import is_named
from tensormeter.server.store.clickhouse.point_counts import PointCounts
from tensormeter.server.store.clickhouse.rowbinary import read_string
from tensormeter.server.store.clickhouse.run_reader import Runs
from tensormeter.server.store.models.metric_kind import parse_kind
from tensormeter.server.store.models.point_range import PointRange
from tensormeter.server.store.models.points import Blobs, Column, Points
from tensormeter.server.store.models.runs import ProcessAttempt
from tensormeter.server.store.models.series import NO_GAPS, MetricSummary, ProcessRollups, Selection, Series
from tensormeter.server.store.rules.gaps import MAX_GAPS
from tensormeter.server.store.rules.limits import check_limit
from tensormeter.server.store.rules.process_rollups import join_steps

__all__ = ["TIME", "PointReader", "arrived_until", "time_range"]

TIME: Final = "toUnixTimestamp64Nano(time)"
"""Time of a point in nanoseconds. Conditions on `time` itself are faster, but need a `DateTime64`."""

_ROW: Final = ("<u8", "<i8", "<i8", "?")
_GAP: Final = np.dtype([("series", "<u8"), ("time", "<i8")])
_LAST: Final = (1 << 63) - 1

_CLOCKS: Final = 600
"""Seconds by which the time in a commit's number and the time of arrival of its points may differ."""

_REPEATED: Final = 4
"""Maximum ratio between a count that includes repeated points and a limit, above which points are not counted without them."""

_FEW: Final = 16
"""Maximum number of series whose points are counted one series after another."""

_GROUP_POINTS: Final = 1_000_000
"""Number of points that a scan reads with one query. They take 25 MB."""


class PointReader:
    """Reader of series and their points. Thread-safe."""

    def __init__(self, connection: Connection, runs: Runs, counts: PointCounts) -> None:
        self._connection = connection
        self._runs = runs
        self._counts = counts

    def metrics(self, run: int, names: Sequence[str] | None = None) -> list[MetricSummary]:
        """See `Store.metrics`."""
        condition, parameters = is_named(names)
        named = f"FROM catalog WHERE run = {run} AND {condition}"
        of_series = "" if names is None else f" AND series GLOBAL IN (SELECT series {named})"
        rows = self._connection.rows(
            "SELECT series, metric, k, p, a, u, d, last, s FROM (SELECT series, metric, anyLast(kind) AS k,"
            " anyLast(process) AS p, anyLast(attributes) AS a, anyLast(unit) AS u, anyLast(description) AS d,"
            f" anyLast(scope) AS s {named} GROUP BY series, metric) AS described GLOBAL ANY INNER JOIN"
            f" (SELECT series, max(last) AS last FROM summary WHERE run = {run}{of_series} GROUP BY series) AS summed"
            " USING series ORDER BY metric, p, a, k, s",
            **parameters,
        )
        steps = self._runs.step_at({(run, row[7][5], row[7][0]) for row in rows if not row[7][3]})
        attempts = self._runs.attempts(run)
        if names is None:
            counts = self._counts.of_series(run, self._runs.updated(run))
        else:
            counts = self._counts.of_some_series(run, [row[0] for row in rows])
        return [_metric(row, counts.get(row[0], 0), steps, attempts) for row in rows]

    def series(self, run: int, selection: Selection) -> list[Sequence[Any]]:
        """Return the selected series, ordered by metric, process and attributes.

        Each row contains key, process, metric, kind, attributes, scope and unit.
        """
        only = "" if selection.process is None else " HAVING p = {process:String}"
        rows = self._connection.rows(
            "SELECT series, anyLast(process) AS p, metric, anyLast(kind) AS k, anyLast(attributes) AS a, anyLast(scope) AS s,"
            " anyLast(unit) FROM catalog"
            f" WHERE run = {run} AND metric IN {{metrics:Array(String)}} GROUP BY series, metric{only}"
            " ORDER BY metric, p, a, k, s",
            metrics=list(selection.metrics),
            process=selection.process or "",
        )
        accepts = selection.accepts
        return [
            row
            for row in rows
            if parse_kind(row[3]).numeric == selection.numeric
            and (accepts is None or accepts.accepts(row[2], parse_kind(row[3]), row[5], row[6], row[4]))
        ]

    def read(self, run: int, rows: Sequence[Sequence[Any]], selection: Selection) -> list[Series]:
        """Return the selected points of these series, regardless of when they arrived. Raises TooManyPointsError."""
        if not rows:
            return []
        start, stop = selection.start, selection.stop
        table = "points" if selection.numeric else "distributions"
        where = f"run = {run} AND series IN ({numbers([row[0] for row in rows])}){time_range(start, stop)}"
        total = self._count(table, where)
        if selection.limit < total <= _REPEATED * selection.limit:
            total = self._count(f"{table} FINAL", where)
        gaps: Mapping[int, NDArray[np.int64]] = {}
        if selection.gaps:
            gaps = self.gaps(run, [row[0] for row in rows], selection, total)
            total += sum(map(len, gaps.values()))
        check_limit(total, selection.limit, {row[2] for row in rows})
        source = f"FROM {table} WHERE {where}{arrived_until(selection.upto)}"
        return [*self.select(rows, source, selection, gaps=gaps).values()]

    def _count(self, table: str, where: str) -> int:
        """Return the number of matching rows.

        A point written twice counts twice until ClickHouse merges the rows. FINAL in `table` avoids this but is slower.
        """
        return int(self._connection.rows(f"SELECT count() FROM {table} WHERE {where}")[0][0])

    def gaps(
        self, run: int, series: Sequence[int], selection: Selection, points: int
    ) -> Mapping[int, NDArray[np.int64]]:
        """Return the newest gaps of each series, ascending.

        Together with `points` points, they do not exceed the selection's limit by more than one.
        """
        if not series:
            return {}
        gaps = self._connection.columns(
            f"SELECT DISTINCT series, time FROM gap WHERE run = {run} AND series IN ({numbers(series)})"
            f"{time_range(selection.start, selection.stop)} ORDER BY series, time DESC"
            f" LIMIT {MAX_GAPS} BY series LIMIT {max(selection.limit - points, 0) + 1}",
            _GAP,
        )
        keys, firsts = np.unique(gaps["series"], return_index=True)
        parts = np.split(gaps["time"], firsts[1:])
        return {int(key): np.sort(part) for key, part in zip(keys, parts, strict=False)}

    def scan(
        self, run: int, processes: Sequence[str], selection: Selection, window: PointRange
    ) -> Iterator[ProcessRollups]:
        """Yield the series of processes; see `Store.scan`. Raises TooManyPointsError."""
        wanted = set(selection.metrics)
        selection = replace(
            selection, metrics=[*wanted | {STEP_METRIC}], process=None, start=window.start, stop=window.stop
        )
        rows: dict[str, list[Sequence[Any]]] = defaultdict(list)
        for row in self.series(run, selection):
            if row[2] in wanted or any(window.needs_steps((row[1], metric)) for metric in wanted):
                rows[row[1]].append(row)
        present = [process for process in processes if any(row[2] in wanted for row in rows[process])]
        counts = self.counts_between(run, [row[0] for process in present for row in rows[process]], selection)
        check_limit(sum(counts.values()), selection.limit, wanted)
        for group in _groups(present, {process: sum(counts[row[0]] for row in rows[process]) for process in present}):
            of_group = [row for process in group for row in rows[process]]
            table = f"FROM points WHERE run = {run} AND series IN ({numbers([row[0] for row in of_group])})"
            source = f"{table}{time_range(window.start, window.stop)}{arrived_until(selection.upto)}"
            series: dict[str, list[Series]] = defaultdict(list)
            for piece in self.select(of_group, source, selection).values():
                series[piece.process].append(piece)
            for process in group:
                pieces = series[process]
                steps = [piece for piece in pieces if piece.metric == STEP_METRIC]
                yield join_steps(process, [piece for piece in pieces if piece.metric in wanted], steps, window)

    def counts_between(self, run: int, series: Sequence[int], selection: Selection) -> Counter[int]:
        """Return the number of points of each series in the selection's time range. Repeated points may count twice."""
        if not series:
            return Counter()
        between = time_range(selection.start, selection.stop)
        counted = f"SELECT series, count() FROM points WHERE run = {run} AND series IN ({numbers(series)}){between} GROUP BY series"
        if len(series) <= _FEW:
            # ClickHouse counts the points of a single series without reading them.
            of_each = (
                f"SELECT toUInt64({key}), count() FROM points WHERE run = {run} AND series = {key}{between}"
                for key in series
            )
            counted = " UNION ALL ".join(of_each)
        rows = self._connection.rows(counted)
        return Counter({key: int(count) for key, count in rows})

    def read_new(
        self, run: int, rows: Sequence[Sequence[Any]], arrived: Collection[Arrived], selection: Selection
    ) -> list[Series]:
        """Return the selected points that arrived in the given commits."""
        metrics = {metric for commit in arrived for metric in commit.metrics}
        if not any(commit.many for commit in arrived):
            rows = [row for row in rows if row[2] in metrics]
        if not rows:
            return []
        first = min(commit.first for commit in arrived if commit.first)
        table = "points" if selection.numeric else "distributions"
        commits = numbers([invert(commit.number) for commit in arrived])
        of_commits = (
            f"FROM {table} WHERE run = {run} AND series IN ({numbers([row[0] for row in rows])}){time_range(first, None)}"
            f" AND precedence IN ({commits})"
        )
        return [*self.select(rows, of_commits, selection).values()]

    def non_finite(self, run: int, arrived: Collection[Arrived]) -> list[str]:
        """Return the metrics with NaN or infinite values that arrived in the given commits, in ascending order."""
        arrived = [commit for commit in arrived if commit.first]
        if not arrived:
            return []
        is_any = any(commit.many for commit in arrived)
        of_metrics, names = is_named(None if is_any else {metric for commit in arrived for metric in commit.metrics})
        first = min(commit.first for commit in arrived)
        received = min(commit.number for commit in arrived) // 10**6 - _CLOCKS
        commits = numbers([invert(commit.number) for commit in arrived])
        rows = self._connection.rows(
            f"SELECT DISTINCT metric FROM catalog WHERE run = {run} AND {of_metrics} AND series GLOBAL IN (SELECT series FROM points"
            f" WHERE run = {run}{time_range(first, None)} AND received >= toDateTime({received}) AND precedence IN ({commits})"
            " AND NOT integer AND NOT isFinite(reinterpretAsFloat64(word))) ORDER BY metric",
            **names,
        )
        return [row[0] for row in rows]

    def select(
        self,
        rows: Sequence[Sequence[Any]],
        source: str,
        selection: Selection,
        *,
        gaps: Mapping[int, NDArray[np.int64]] = MappingProxyType({}),
    ) -> dict[int, Series]:
        """Return the series among rows of `series` for which a statement has points, by key.

        The statement consists of columns and `source`, which begins with FROM. FINAL is unnecessary and slow: if several
        points have the same time, the first one to arrive is returned anyway.
        """
        ordered = f"{source} ORDER BY series, time, precedence DESC"
        if selection.numeric:
            keys, *columns = self._connection.arrays(f"SELECT series, time, word, integer {ordered}", _ROW)
            column: Column = Points(*columns)
        else:
            keys, column = _decode_blobs(self._connection.raw(f"SELECT series, time, data {ordered}"))
        series = {}
        for key, process, metric, kind, attributes, scope, unit in rows:
            selection.check()
            first, last = (
                np.searchsorted(keys, np.array([key, key], np.uint64)[0], "left"),
                np.searchsorted(keys, np.array([key], np.uint64)[0], "right"),
            )
            if last > first:
                points = column[first:last].distinct()
                about = (process, metric, parse_kind(kind), json.loads(attributes))
                series[key] = Series(*about, points, scope, unit, gaps.get(key, NO_GAPS))
        return series


def _groups(processes: Sequence[str], counts: Mapping[str, int]) -> Iterator[list[str]]:
    """Divide processes into groups with up to `_GROUP_POINTS` points, except for a process that has more."""
    group: list[str] = []
    points = 0
    for process in processes:
        if group and points + counts[process] > _GROUP_POINTS:
            yield group
            group, points = [], 0
        group.append(process)
        points += counts[process]
    if group:
        yield group


def _metric(
    row: Sequence[Any], points: int, steps: Mapping[tuple[int, int], int], attempts: Mapping[str, ProcessAttempt]
) -> MetricSummary:
    _, metric, kind_text, process, attributes, unit, description, last, scope = row
    time, word, integer, stepped, step, step_series = last
    kind = parse_kind(kind_text)
    value: int | float | None = None
    if kind.numeric:
        value = word if integer else float(np.int64(word).view(np.float64))
    return MetricSummary(
        metric=metric,
        kind=kind,
        process=process,
        attempt=attempts[process].number if attempts else 1,
        attributes=json.loads(attributes),
        unit=unit,
        description=description,
        points=points,
        last=value,
        last_time=time,
        last_step=step if stepped else steps.get((step_series, time)),
        scope=scope,
    )


def _decode_blobs(data: bytes) -> tuple[NDArray[np.uint64], Blobs]:
    """Decode RowBinary rows of series, time and data."""
    keys, times, blobs, view = [], [], [], memoryview(data)
    position = 0
    while position < len(data):
        keys.append(int.from_bytes(data[position : position + 8], "little"))
        times.append(int.from_bytes(data[position + 8 : position + 16], "little", signed=True))
        position += 16
        blob, position = read_string(view, position)
        blobs.append(blob)
    return np.array(keys, np.uint64), Blobs.of(np.array(times, np.int64), blobs)


def arrived_until(cursor: str | None) -> str:
    """Return the end of a condition that omits points after a cursor of the arrival log.

    If several servers use the database, points of a commit in progress may remain.
    """
    number = newest(cursor)
    return "" if number is None else f" AND precedence >= {invert(number)}"


def time_range(start: int | None, stop: int | None) -> str:
    """Return the end of a condition that limits rows to start <= time < stop."""
    conditions = ""
    for operator, bound in ((">=", start), ("<", stop)):
        if bound is not None:
            conditions += f" AND time {operator} fromUnixTimestamp64Nano({min(max(bound, 0), _LAST)}, 'UTC')"
    return conditions
