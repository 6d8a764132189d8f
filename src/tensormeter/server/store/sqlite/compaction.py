"""A flush, which moves points from the memtable to segments in the file and merges young segments.

A flush writes a series' points to a new segment. It merges the youngest segments into the new one, until a segment is
full or has more points than the new one. With this logarithmic method, a series has few small segments, and each point
is rewritten a logarithmic number of times. A full segment never changes again.

Two segments of a series never contain the same time, because a flush skips times that are already in segments.
"""

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.models.points import Column, Newest, Points, newest
from tensormeter.server.store.rules.totals import Totals
from tensormeter.server.store.sqlite.integrity.seals import directory_of
from tensormeter.server.store.sqlite.points.memtable import BufferSnapshot, MemtableSnapshot
from tensormeter.server.store.sqlite.points.segment_reader import segment_points
from tensormeter.server.store.sqlite.points.segment_rows import Span, find_segments, insert_segments, spans
from tensormeter.server.store.sqlite.points.segments import Segment, encode_segment, segment_capacity
from tensormeter.server.store.sqlite.points.step_lookup import StepLookup
from tensormeter.server.store.sqlite.tables import commit_log
from tensormeter.server.store.sqlite.tables.summaries import add_totals
from tensormeter.server.store.sqlite.transaction import CHANGED

__all__ = ["SeriesFlush", "apply_flush", "full_segments", "plan_flush"]


@dataclass(frozen=True)
class SeriesFlush:
    """Changes to one series in a flush.

    Attributes:
        first: Sequence number of the first new segment. The new segments replace all old segments from this number on.
        segments: New segments.
        directory: Checksum of the complete list of segments after the flush.
        added: Number of points that the flush adds to segments.
        newest: Latest of the added points.
        last_step: Step logged at the time of `newest`, or None.
        totals: Totals of the added points; None if they are distributions.
    """

    series: int
    run: int
    metric: str
    first: int
    segments: Sequence[Segment]
    directory: int
    added: int
    newest: Newest
    last_step: int | None
    totals: Totals | None


def plan_flush(
    connection: sqlite3.Connection,
    snapshot: MemtableSnapshot,
    yield_to_readers: Callable[[], None],
    report: Callable[[DamagedError], None],
) -> list[SeriesFlush]:
    """Read the segments to merge, and encode the new segments. Writes nothing.

    Args:
        connection: Connection to read with.
        snapshot: Memtable contents to flush.
        yield_to_readers: Function called before each series.
        report: Function called with the error for each damaged part. A damaged segment stays unchanged, and new
            segments follow it.
    """
    steps = StepLookup(connection, [snapshot])
    flushes = []
    for series, buffer in snapshot.series.items():
        yield_to_readers()
        series_flush = _plan(connection, steps, series, buffer, report)
        if series_flush is not None:
            flushes.append(series_flush)
    return flushes


def apply_flush(connection: sqlite3.Connection, flushes: Sequence[SeriesFlush], upto: int) -> None:
    """Write a flush inside the caller's transaction, and delete the flushed journal rows, numbered up to `upto`."""
    connection.executemany("DELETE FROM chunk WHERE series = ? AND seq >= ?", [(f.series, f.first) for f in flushes])
    insert_segments(
        connection, ((f.series, f.first + i, segment) for f in flushes for i, segment in enumerate(f.segments))
    )
    connection.executemany(
        "UPDATE series SET points = points + ?, directory = ? WHERE id = ?",
        [(flush.added, flush.directory, flush.series) for flush in flushes],
    )
    connection.executemany(
        "UPDATE series SET last_time = ?, last_word = ?, last_integer = ?, last_step = ?"
        " WHERE id = ? AND ifnull(last_time, 0) < ?",
        [(*flush.newest, flush.last_step, flush.series, flush.newest[0]) for flush in flushes],
    )
    added: Counter[int] = Counter()
    totals: dict[tuple[int, str], list[Totals]] = defaultdict(list)
    for flush in flushes:
        added[flush.run] += flush.added
        if flush.totals is not None:
            totals[flush.run, flush.metric].append(flush.totals)
    connection.executemany("UPDATE run SET points = points + ? WHERE id = ?", [(n, run) for run, n in added.items()])
    for (run, metric), parts in totals.items():
        add_totals(connection, run, metric, Totals.merge(parts))
    commit_log.retire(connection, upto)


def full_segments(flushes: Sequence[SeriesFlush]) -> list[tuple[int, int]]:
    """Return (series, sequence number) for each full numeric segment that the flush writes."""
    return [
        (flush.series, flush.first + i)
        for flush in flushes
        for i, segment in enumerate(flush.segments)
        if segment.is_full
    ]


def _plan(
    connection: sqlite3.Connection,
    steps: StepLookup,
    series: int,
    buffer: BufferSnapshot,
    report: Callable[[DamagedError], None],
) -> SeriesFlush | None:
    points = type(buffer.parts[0]).concat(buffer.parts).distinct()
    segments = _SeriesSegments(connection, series, type(points), report)
    start, stop = int(points.times[0]), int(points.times[-1])
    for span in segments.spans:
        if span.t_max >= start and span.t_min <= stop:
            stored = segments.points(span)
            if stored is not None:
                points = points[~np.isin(points.times, stored.times)]
    if not len(points):
        return None
    added, latest = len(points), newest(points)
    try:
        step = steps.at(buffer.process, latest[0])
    except DamagedError as error:
        report(error)
        step = None
    totals = Totals.of(points, step) if isinstance(points, Points) else None
    first, pieces = _merge(segments, points)
    directory = segments.directory(first, pieces)
    return SeriesFlush(series, buffer.run, buffer.metric, first, pieces, directory, added, latest, step, totals)


def _merge(segments: "_SeriesSegments", points: Column) -> tuple[int, list[Segment]]:
    """Merge points with the youngest segments. Return the new segments and the sequence number of the first one."""
    full = segment_capacity(points)
    first = segments.spans[-1].seq + 1 if segments.spans else 0
    total = len(points)
    parts = [points]
    for span in reversed(segments.spans):
        if span.n > total or span.n >= full:
            break
        stored = segments.points(span)
        if stored is None:  # damaged: keep the row for manual repair
            break
        parts.insert(0, stored)
        first, total = span.seq, total + span.n
    if len(parts) > 1:
        points = type(points).concat(parts).distinct()
    return first, [encode_segment(points[i : i + full]) for i in range(0, len(points), full)]


class _SeriesSegments:
    """The undamaged segments of one series, each read at most once."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        series: int,
        kind: type[Column],
        report: Callable[[DamagedError], None],
    ) -> None:
        self._connection = connection
        self._series = series
        self._kind = kind
        self._report = report
        self._read: dict[int, Column | None] = {}
        self.spans = spans(connection, series, strict=False)
        stored = connection.execute("SELECT directory FROM series WHERE id = ?", (series,)).fetchone()
        self._damage = 0
        if stored is not None and isinstance(stored[0], int):
            self._damage = stored[0] ^ directory_of(map(astuple, self.spans))
        if self._damage:
            report(DamagedError("its list of segments does not match the checksum", series=series))

    def points(self, span: Span) -> Column | None:
        """Return the points of a segment, or None after reporting that it is damaged."""
        if span.seq not in self._read:
            self._read[span.seq] = self._points(span)
        return self._read[span.seq]

    def directory(self, first: int, added: Sequence[Segment]) -> int:
        """Return the checksum of the segment list after replacing segments from `first` on.

        If the current list does not match its checksum, the new list will not match the new one either.
        """
        kept = [astuple(span) for span in self.spans if span.seq < first]
        new = [(first + i, segment.n, segment.t_min, segment.t_max) for i, segment in enumerate(added)]
        return directory_of(kept + new) ^ self._damage

    def _points(self, span: Span) -> Column | None:
        try:
            (segment,) = find_segments(self._connection, self._series, [span])
            points = segment_points(segment)
        except DamagedError as error:
            self._report(error)
            return None
        except sqlite3.OperationalError:
            raise
        except (sqlite3.DatabaseError, *CHANGED) as error:
            damaged = DamagedError(f"segment {span.seq}: {error}", series=self._series)
            damaged.__cause__ = error
            self._report(damaged)
            return None
        return points if isinstance(points, self._kind) else None
