"""Reading of many series' points from segments in the file and buffers in memory, with few statements."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np

from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.models.points import Blobs, Column, Points
from tensormeter.server.store.models.series import Selection
from tensormeter.server.store.sqlite.integrity.damage import skip_damaged
from tensormeter.server.store.sqlite.points.memtable import MemtableSnapshot
from tensormeter.server.store.sqlite.points.segment_decoder import SegmentDecoder
from tensormeter.server.store.sqlite.points.segment_rows import Span, read_segments
from tensormeter.server.store.sqlite.points.segments import Segment, decode_blobs

__all__ = ["SegmentBatches", "SeriesSpans", "count_in_memory", "spans_between"]

SeriesSpans = tuple[int, Sequence[Span]]
"""Row ID of a series, and the spans of the segments to read, in ascending order of number."""

_POINTS: Final = 500_000
"""Maximum number of points to read with one statement, except for a series that has more."""

_SERIES: Final = 2_000
"""Maximum number of series to read with one statement."""

_FIRST_TIME: Final = 0
_AFTER_LAST_TIME: Final = (1 << 63) - 1


class SegmentBatches:
    """A reader of the points that a selection selects from many series, as of one snapshot and for use by one thread."""

    def __init__(
        self, connection: sqlite3.Connection, snapshots: Sequence[MemtableSnapshot], selection: Selection
    ) -> None:
        """Create a reader of the selection's time range. Metrics and process of the selection are ignored."""
        self._connection = connection
        self._snapshots = snapshots
        self._selection = selection
        self._decoder = SegmentDecoder()
        self._bounds = _bounds(selection.start, selection.stop)
        self._is_bounded = selection.start is not None or selection.stop is not None

    def read(self, wanted: Iterable[SeriesSpans]) -> Iterator[tuple[int, Column]]:
        """Yield the points of each series in the given order, with distinct and ascending times.

        Damaged series are omitted, and added to the selection's list of damage.

        Raises:
            DamagedError: A series is damaged, and the selection has no such list.
        """
        for batch in _batches(wanted):
            yield from self._read_batch(batch)

    def _read_batch(self, batch: Sequence[SeriesSpans]) -> Iterator[tuple[int, Column]]:
        segment_lists = [*read_segments(self._connection, batch)]
        segments = [segment for listed in segment_lists if isinstance(listed, list) for segment in listed]
        decoded = iter(self._decode(segments))
        for (series, _), listed in zip(batch, segment_lists, strict=True):
            self._selection.check()
            parts = [next(decoded) for _ in listed] if isinstance(listed, list) else [listed]
            points: Column | None = None
            with skip_damaged(self._connection, self._selection.damaged):
                points = self._join(series, parts)
            if points is not None:
                yield series, points

    def _decode(self, segments: Sequence[Segment]) -> Sequence[Column | DamagedError]:
        return self._decoder.decode(segments) if self._selection.numeric else [*map(_decode_blobs, segments)]

    def _join(self, series: int, decoded: Sequence[Column | DamagedError]) -> Column:
        parts: list[Column] = []
        for part in decoded:
            if isinstance(part, DamagedError):
                raise part
            parts.append(part)
        for snapshot in self._snapshots:
            buffer = snapshot.series.get(series)
            if buffer is not None:
                parts.extend(buffer.parts)
        column = Points if self._selection.numeric else Blobs
        points: Column = column.concat(parts).distinct()  # type: ignore[arg-type]
        if not self._is_bounded:
            return points
        first, last = np.searchsorted(points.times, self._bounds)
        return points[first:last]


def spans_between(spans: Iterable[Span], start: int | None, stop: int | None) -> list[Span]:
    """Return the spans that may contain points with start <= time < stop."""
    if start is None and stop is None:
        return [*spans]
    low, high = _bounds(start, stop)
    return [span for span in spans if span.t_max >= low and span.t_min < high]


def count_in_memory(snapshots: Sequence[MemtableSnapshot], series: int) -> int:
    """Return the number of points of a series in memory, including duplicates."""
    buffers = (snapshot.series.get(series) for snapshot in snapshots)
    return sum(buffer.n for buffer in buffers if buffer is not None)


def _batches(wanted: Iterable[SeriesSpans]) -> Iterator[list[SeriesSpans]]:
    batch: list[SeriesSpans] = []
    points = 0
    for series, spans in wanted:
        n = sum(span.n for span in spans)
        if batch and (points + n > _POINTS or len(batch) == _SERIES):
            yield batch
            batch, points = [], 0
        batch.append((series, spans))
        points += n
    if batch:
        yield batch


def _decode_blobs(segment: Segment) -> Blobs | DamagedError:
    try:
        return decode_blobs(segment)
    except DamagedError as error:
        return error


def _bounds(start: int | None, stop: int | None) -> tuple[int, int]:
    """Return a time range that fits into SQLite's integers. None stands for the earliest or latest possible time."""
    low = _FIRST_TIME if start is None else min(max(start, _FIRST_TIME), _AFTER_LAST_TIME)
    high = _AFTER_LAST_TIME if stop is None else min(max(stop, _FIRST_TIME), _AFTER_LAST_TIME)
    return low, high
