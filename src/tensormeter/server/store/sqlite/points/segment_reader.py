"""Functions that read a series' points from segments in the file and buffers in memory."""

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.models.points import Blobs, Column, Points
from tensormeter.server.store.sqlite.points.memtable import MemtableSnapshot
from tensormeter.server.store.sqlite.points.segment_rows import find_segments, spans
from tensormeter.server.store.sqlite.points.segments import Segment, decode_blobs, decode_segment

__all__ = ["count_points", "read_at", "read_points", "segment_points"]

_BLOBS: Final = 3
_FIRST_TIME: Final = 0
_AFTER_LAST_TIME: Final = (1 << 63) - 1


def _find_segments_between(
    connection: sqlite3.Connection, series: int, start: int | None, stop: int | None
) -> Iterator[Segment]:
    """Read the segments that may contain points with start <= time < stop, in order of arrival.

    Raises:
        DamagedError: A segment is damaged or missing.
    """
    low, high = _bounds(start, stop)
    selected = [span for span in spans(connection, series) if span.t_max >= low and span.t_min < high]
    return find_segments(connection, series, selected)


def segment_points(segment: Segment) -> Column:
    """Decode a segment of any kind. Raises the same errors as `decode_segment`."""
    return decode_blobs(segment) if segment.kind == _BLOBS else decode_segment(segment)


def read_points(
    connection: sqlite3.Connection,
    snapshots: Sequence[MemtableSnapshot],
    series: int,
    start: int | None = None,
    stop: int | None = None,
    *,
    numeric: bool = True,
) -> Column:
    """Read the points of a series with start <= time < stop. Their times are distinct and ascending."""
    parts = [segment_points(segment) for segment in _find_segments_between(connection, series, start, stop)]
    for snapshot in snapshots:
        if series in snapshot.series:
            parts.extend(snapshot.series[series].parts)
    points: Column = Points.concat(parts) if numeric else Blobs.concat(parts)  # type: ignore[arg-type]
    points = points.distinct()
    if start is None and stop is None:
        return points
    first, last = np.searchsorted(points.times, _bounds(start, stop))
    return points[first:last]


def count_points(
    connection: sqlite3.Connection,
    snapshots: Sequence[MemtableSnapshot],
    series: int,
    start: int | None = None,
    stop: int | None = None,
) -> int:
    """Return the number of points that `read_points` must decode. It may return fewer points. Raises DamagedError."""
    low, high = _bounds(start, stop)
    stored = sum(span.n for span in spans(connection, series) if span.t_max >= low and span.t_min < high)
    return stored + sum(snapshot.series[series].n for snapshot in snapshots if series in snapshot.series)


def read_at(
    connection: sqlite3.Connection,
    snapshots: Sequence[MemtableSnapshot],
    series: int,
    times: NDArray[np.int64],
) -> Points:
    """Read points of a numeric series in time order, including all points at `times` (ascending) and possibly others.

    Segments that cannot contain these times are not decoded.
    """
    selected = []
    for span in spans(connection, series):
        index = int(np.searchsorted(times, span.t_min))
        if index < len(times) and times[index] <= span.t_max:
            selected.append(span)
    parts = [decode_segment(segment) for segment in find_segments(connection, series, selected)]
    for snapshot in snapshots:
        if series in snapshot.series:
            parts.extend(part for part in snapshot.series[series].parts if isinstance(part, Points))
    return Points.concat(parts).distinct()


def _bounds(start: int | None, stop: int | None) -> tuple[int, int]:
    """Return a time range that fits into SQLite's integers. None stands for the earliest or latest possible time."""
    low = _FIRST_TIME if start is None else min(max(start, _FIRST_TIME), _AFTER_LAST_TIME)
    high = _AFTER_LAST_TIME if stop is None else min(max(stop, _FIRST_TIME), _AFTER_LAST_TIME)
    return low, high
