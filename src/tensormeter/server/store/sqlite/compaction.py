"""A flush, which moves points from the memtable to the file.

Most points become segments; see `series_flush`. The short series of runs with many series share bundles; see
`bundle_flush`.
"""

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.otlp.check import Check, no_check
from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.rules.totals import Totals
from tensormeter.server.store.sqlite.bundle_flush import BundledLookup, GroupFlush, plan_group
from tensormeter.server.store.sqlite.points.bundle_snapshot import WIDE
from tensormeter.server.store.sqlite.points.bundles import GROUP, insert_bundles
from tensormeter.server.store.sqlite.points.memtable import BufferSnapshot, MemtableSnapshot
from tensormeter.server.store.sqlite.points.number_parts import NumberIndex, NumberPart, SortedNumbers
from tensormeter.server.store.sqlite.points.segment_rows import insert_segments
from tensormeter.server.store.sqlite.points.step_lookup import StepLookup
from tensormeter.server.store.sqlite.series_flush import SeriesFlush, plan_series
from tensormeter.server.store.sqlite.tables import commit_log
from tensormeter.server.store.sqlite.tables.summaries import add_totals

__all__ = ["Flush", "apply_flush", "full_segments", "plan_flush"]

_LONG: Final = 256
"""Number of points in one flush from which on a series gets separate segments."""

_SLICE: Final = 200_000
"""Number of points that are sorted at once."""

Report = Callable[[DamagedError], None]


@dataclass(frozen=True)
class Flush:
    """The changes of a flush."""

    series: list[SeriesFlush] = field(default_factory=list)
    groups: list[GroupFlush] = field(default_factory=list)


def plan_flush(
    connection: sqlite3.Connection,
    snapshot: MemtableSnapshot,
    yield_to_readers: Callable[[], None],
    report: Report,
) -> Flush:
    """Read the segments and bundles to merge, and encode the new ones. Writes nothing.

    Args:
        connection: Connection to read with.
        snapshot: Memtable contents to flush.
        yield_to_readers: Function called before each series and each group.
        report: Function called with the error for each damaged part. A damaged segment or bundle stays unchanged, and new
            ones follow it.
    """
    steps = StepLookup(connection, [snapshot])
    flush = Flush()
    wide = [index for index in snapshot.series.numbers if _is_wide(connection, index.run)]
    bundled = BundledLookup(connection, report)

    def add(series: int, buffer: BufferSnapshot, *, is_wide: bool) -> None:
        yield_to_readers()
        points = bundled.points(series) if is_wide else None
        planned = plan_series(connection, steps, series, buffer, report, points)
        if planned is not None:
            flush.series.append(planned)

    for index in snapshot.series.numbers:
        if index not in wide:
            rows = index.series()
            index.resolve(rows)
            for series in rows:
                points = index.points(series)
                assert points is not None
                add(series, BufferSnapshot(index.run, series, (points,), index), is_wide=False)
    for series, buffer in snapshot.series.distributions.items():
        add(series, buffer, is_wide=False)
    by_run = {index.run: index for index in wide}
    step_series = [series for index in wide for series in index.series((STEP_METRIC,))]
    for numbers, runs in _slices(wide):
        is_long = (np.diff(numbers.starts) >= _LONG) | np.isin(numbers.series, step_series)
        for place in np.flatnonzero(is_long).tolist():
            series, index = int(numbers.series[place]), by_run[int(runs[place])]
            points = numbers.all[numbers.starts[place] : numbers.starts[place + 1]]
            add(series, BufferSnapshot(index.run, series, (points,), index), is_wide=True)
        short, owners = numbers.select(np.repeat(~is_long, np.diff(numbers.starts))), runs[~is_long]
        groups = short.series // GROUP
        edges = [*np.flatnonzero(np.diff(groups, prepend=groups[:1] - 1)).tolist(), len(groups)]
        for first, last in pairwise(edges):
            yield_to_readers()
            group = plan_group(
                connection, steps, int(groups[first]), short.between(first, last), owners[first:last], report
            )
            flush.groups.append(group)
            flush.series.extend(group.moved)
    return flush


def apply_flush(connection: sqlite3.Connection, flush: Flush, upto: int, check: Check = no_check) -> None:
    """Write a flush inside the caller's transaction, and delete the flushed journal rows, numbered up to `upto`.

    `check` is called for each series, and may raise an exception to stop the work.
    """
    flushes = flush.series

    def checked() -> Iterator[SeriesFlush]:
        for each in flushes:
            check()
            yield each

    connection.executemany("DELETE FROM chunk WHERE series = ? AND seq >= ?", ((f.series, f.first) for f in checked()))
    insert_segments(
        connection, ((f.series, f.first + i, segment) for f in checked() for i, segment in enumerate(f.segments))
    )
    connection.executemany(
        "UPDATE series SET points = points + ?, directory = ? WHERE id = ?",
        ((flush.added, flush.directory, flush.series) for flush in checked()),
    )
    connection.executemany(
        "UPDATE series SET last_time = ?, last_word = ?, last_integer = ?, last_step = ?"
        " WHERE id = ? AND ifnull(last_time, 0) < ?",
        ((*flush.newest, flush.last_step, flush.series, flush.newest[0]) for flush in checked()),
    )
    added: Counter[int] = Counter()
    totals: dict[tuple[int, str], list[Totals]] = defaultdict(list)
    for series_flush in flushes:
        added[series_flush.run] += series_flush.fresh
        if series_flush.totals is not None:
            totals[series_flush.run, series_flush.metric].append(series_flush.totals)
    _apply_groups(connection, flush.groups)
    for group in flush.groups:
        added.update(group.fresh)
    connection.executemany("UPDATE run SET points = points + ? WHERE id = ?", [(n, run) for run, n in added.items()])
    for (run, metric), parts in totals.items():
        check()
        add_totals(connection, run, metric, Totals.merge(parts))
    commit_log.retire(connection, upto)


def full_segments(flush: Flush) -> list[tuple[int, int]]:
    """Return (series, sequence number) for each full numeric segment that the flush writes."""
    return [
        (series_flush.series, series_flush.first + i)
        for series_flush in flush.series
        for i, segment in enumerate(series_flush.segments)
        if segment.is_full
    ]


def _apply_groups(connection: sqlite3.Connection, groups: Sequence[GroupFlush]) -> None:
    connection.executemany(
        "DELETE FROM bundle WHERE grp = ? AND seq >= ?", [(each.group, each.first) for each in groups]
    )
    insert_bundles(connection, (row for group in groups for row in group.rows))
    connection.executemany(
        "INSERT OR REPLACE INTO bundle_group (id, directory) VALUES (?, ?)",
        [(group.group, group.directory) for group in groups],
    )


def _is_wide(connection: sqlite3.Connection, run: int) -> bool:
    row = connection.execute("SELECT series FROM run WHERE id = ?", (run,)).fetchone()
    return row is not None and row[0] >= WIDE


def _slices(indexes: Sequence[NumberIndex]) -> Iterator[tuple[SortedNumbers, NDArray[np.int64]]]:
    """Yield the points of some runs, and the run of each series, in slices of whole groups.

    The points of a series have distinct times in ascending order.
    """
    parts = [(index.run, part) for index in indexes for part in index.parts]
    if not parts:
        return
    groups = np.concatenate([part.series // GROUP for _, part in parts])
    names, inverse = np.unique(groups, return_inverse=True)
    ends = np.cumsum(np.bincount(inverse.reshape(-1), np.concatenate([part.counts for _, part in parts])))
    edges = np.flatnonzero(np.diff(ends // _SLICE, prepend=-1))
    for first, last in pairwise([*names[edges].tolist(), int(names[-1]) + 1]):
        masks = [(part.series >= first * GROUP) & (part.series < last * GROUP) for _, part in parts]
        selected = [(run, part.select(mask)) for (run, part), mask in zip(parts, masks, strict=True) if mask.any()]
        numbers = SortedNumbers.sort(NumberPart.concat([part for _, part in selected]))
        series = np.concatenate([part.series for _, part in selected])
        runs = np.concatenate([np.full(len(part.series), run) for run, part in selected])
        _, places = np.unique(series, return_index=True)
        yield SortedNumbers.distinct([numbers]), runs[places]
