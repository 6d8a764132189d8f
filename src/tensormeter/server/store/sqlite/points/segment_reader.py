"""Functions that read a series' points from segments in the file and buffers in memory."""

import sqlite3
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.models.points import Column, Points
from tensormeter.server.store.sqlite.points.memtable import MemtableSnapshot
from tensormeter.server.store.sqlite.points.segment_rows import find_segments, spans
from tensormeter.server.store.sqlite.points.segments import BLOBS, Segment, decode_blobs, decode_segment

__all__ = ["read_at", "segment_points"]


def segment_points(segment: Segment) -> Column:
    """Decode a segment of any kind. Raises the same errors as `decode_segment`."""
    return decode_blobs(segment) if segment.kind == BLOBS else decode_segment(segment)


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
