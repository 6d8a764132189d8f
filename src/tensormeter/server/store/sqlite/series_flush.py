"""The part of a flush that concerns one series: its points become segments, and young segments are merged.

A flush writes a series' points to a new segment. It merges the youngest segments into the new one, until a segment is
full or has more points than the new one. With this logarithmic method, a series has few small segments, and each point
is rewritten a logarithmic number of times. A full segment never changes again.

Two segments of a series never contain the same time, because a flush skips times that are already in segments.
"""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.models.points import Column, Newest, Points, newest
from tensormeter.server.store.rules.totals import Totals
from tensormeter.server.store.sqlite.integrity.seals import directory_of
from tensormeter.server.store.sqlite.points.memtable import BufferSnapshot
from tensormeter.server.store.sqlite.points.segment_rows import Span, find_segments, spans
from tensormeter.server.store.sqlite.points.segments import Segment, encode_segment, segment_capacity, segment_points
from tensormeter.server.store.sqlite.points.step_lookup import StepLookup
from tensormeter.server.store.sqlite.transaction import CHANGED

__all__ = ["SeriesFlush", "SeriesSegments", "flush_of", "plan_series"]


@dataclass(frozen=True)
class SeriesFlush:
    """Changes to one series in a flush.

    Attributes:
        first: Sequence number of the first new segment. The new segments replace all old segments from this number on.
        segments: New segments.
        directory: Checksum of the complete list of segments after the flush.
        added: Number of points that the flush adds to segments.
        fresh: Number of these points that were not in the file before.
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
    fresh: int
    newest: Newest
    last_step: int | None
    totals: Totals | None


def plan_series(
    connection: sqlite3.Connection,
    steps: StepLookup,
    series: int,
    buffer: BufferSnapshot,
    report: Callable[[DamagedError], None],
    bundled: Points | None = None,
) -> SeriesFlush | None:
    """Plan the flush of one series. Writes nothing.

    Args:
        connection: Connection to read with.
        steps: Lookup of steps, as of the flush.
        series: Row ID of the series.
        buffer: Points of the series.
        report: Function called with the error for each damaged part.
        bundled: Points of the series in bundles, or None.

    Returns:
        The changes, or None if all points are already in the file.
    """
    points = type(buffer.parts[0]).concat(buffer.parts).distinct()
    if bundled is not None:
        points = points[~np.isin(points.times, bundled.times)]
    segments = SeriesSegments(connection, series, type(points), report)
    points = segments.absent(points)
    if not len(points):
        return None
    return flush_of(segments, steps, (buffer.run, buffer.process, buffer.metric), points, len(points))


def flush_of(
    segments: "SeriesSegments", steps: StepLookup, owner: tuple[int, int, str], points: Column, fresh: int
) -> SeriesFlush:
    """Return the changes that move points to segments.

    Args:
        segments: Segments of the series, which contain none of the points.
        steps: Lookup of steps, as of the flush.
        owner: Row IDs of the run and the process, and the metric.
        points: Points with distinct times in ascending order.
        fresh: Number of these points that are not in the file yet.
    """
    run, process, metric = owner
    latest = newest(points)
    try:
        step = steps.at(process, latest[0])
    except DamagedError as error:
        segments.report(error)
        step = None
    totals = Totals.of(points, step) if isinstance(points, Points) else None
    first, pieces = _merge(segments, points)
    directory = segments.directory(first, pieces)
    return SeriesFlush(segments.series, run, metric, first, pieces, directory, len(points), fresh, latest, step, totals)


def _merge(segments: "SeriesSegments", points: Column) -> tuple[int, list[Segment]]:
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


class SeriesSegments:
    """The undamaged segments of one series, each read at most once."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        series: int,
        kind: type[Column],
        report: Callable[[DamagedError], None],
    ) -> None:
        self._connection = connection
        self.series = series
        self._kind = kind
        self.report = report
        self._read: dict[int, Column | None] = {}
        self.spans = spans(connection, series, strict=False)
        stored = connection.execute("SELECT directory FROM series WHERE id = ?", (series,)).fetchone()
        self._damage = 0
        if stored is not None and isinstance(stored[0], int):
            self._damage = stored[0] ^ directory_of(map(astuple, self.spans))
        if self._damage:
            report(DamagedError("its list of segments does not match the checksum", series=series))

    def absent(self, points: Column) -> Column:
        """Return those of some points, in ascending order of time, that no segment contains."""
        for span in self.spans:
            if len(points) and span.t_max >= points.times[0] and span.t_min <= points.times[-1]:
                stored = self.points(span)
                if stored is not None:
                    points = points[~np.isin(points.times, stored.times)]
        return points

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
            (segment,) = find_segments(self._connection, self.series, [span])
            points = segment_points(segment)
        except DamagedError as error:
            self.report(error)
            return None
        except sqlite3.OperationalError:
            raise
        except (sqlite3.DatabaseError, *CHANGED) as error:
            damaged = DamagedError(f"segment {span.seq}: {error}", series=self.series)
            damaged.__cause__ = error
            self.report(damaged)
            return None
        return points if isinstance(points, self._kind) else None
