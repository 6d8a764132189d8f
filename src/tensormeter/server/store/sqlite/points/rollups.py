"""Rollups of segments. They are built once a segment is full, and read instead of the segment's points.

A full segment never changes, and neither do its rollups. Fine rollups have blocks of 512 points, and coarse rollups
have blocks of 4,096 points. Rollups contain steps only if every point of the segment has a step. Otherwise, queries by
step read the points.
"""

import json
import sqlite3
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.models.metric_kind import parse_kind
from tensormeter.server.store.models.point_range import PointRange, Track
from tensormeter.server.store.models.points import Points, steps_at
from tensormeter.server.store.models.rollup_blocks import BLOCK_POINTS, Blocks
from tensormeter.server.store.models.series import NO_GAPS, Selection, SeriesRollup
from tensormeter.server.store.rules.limits import check_limit
from tensormeter.server.store.rules.rollup_joining import (
    UnorderedError,
    join_rollups,
    select_rollups,
    separate_rollups,
)
from tensormeter.server.store.sqlite.integrity.damage import skip_damaged
from tensormeter.server.store.sqlite.integrity.seals import checksum, is_sound, verify
from tensormeter.server.store.sqlite.points import segments
from tensormeter.server.store.sqlite.points.memtable import MemtableSnapshot
from tensormeter.server.store.sqlite.points.segment_rows import (
    SEGMENT_COLUMNS,
    Span,
    find_segments,
    parse_segment,
    spans,
)
from tensormeter.server.store.sqlite.points.segments import compress_words, decode_segment, decompress_words
from tensormeter.server.store.sqlite.points.series_reader import SeriesRow

__all__ = [
    "SegmentKey",
    "build_rollups",
    "find_missing_rollups",
    "insert_rollups",
    "is_rollup_sound",
    "read_rollups",
    "rollup_seal",
]

_JOINED: Final = 8
"""Number of fine blocks in a coarse block."""

ROLLUP_COLUMNS: Final = "chunk, step_min, step_max, ascending, coarse, fine, seal, coarse_seal, fine_seal"
"""Columns of the table `sample`."""

_CACHED: Final = 4
"""Number of decoded step segments to cache. All metrics of a process share these segments."""

SegmentKey = tuple[int, int]
"""(series, sequence number) of a full numeric segment that lacks rollups."""


@dataclass(frozen=True)
class _Full:
    """A full segment with rollups.

    Attributes:
        row: Row ID of the segment.
        seq: Sequence number of the segment in the series.
        n: Number of points.
        times: Earliest and latest time.
        steps: Lowest and highest step; None unless every point has a step.
        ascending: Whether steps never decrease.
    """

    row: int
    seq: int
    n: int
    times: tuple[int, int]
    steps: tuple[int, int] | None
    ascending: bool


def find_missing_rollups(connection: sqlite3.Connection) -> list[SegmentKey]:
    """Return the full numeric segments that lack rollups.

    An older version wrote these segments, or the server was killed before it built the rollups.
    """
    rows = connection.execute(
        "SELECT chunk.series, chunk.seq FROM chunk LEFT JOIN sample ON sample.chunk = chunk.id"
        " WHERE chunk.n >= ? AND sample.chunk IS NULL ORDER BY chunk.series, chunk.seq",
        (segments.SEGMENT_POINTS,),
    )
    return [(series, seq) for series, seq in rows]


def build_rollups(connection: sqlite3.Connection, keys: Sequence[SegmentKey]) -> list[tuple[object, ...]]:
    """Build rows for the table `sample`, skipping segments that no longer exist. Writes nothing."""
    rows: list[tuple[object, ...]] = []
    steps: _Steps | None = None
    for series, seq in keys:
        row = connection.execute(
            f"SELECT id, {SEGMENT_COLUMNS} FROM chunk WHERE series = ? AND seq = ?", (series, seq)
        ).fetchone()
        if row is None or not (segment := parse_segment(row[1:])).is_full:
            continue
        points = decode_segment(segment)
        process = _process_of(connection, series)
        if steps is None or steps.process != process:
            steps = _Steps(connection, (), process)
        try:
            logged, stepped = steps.at(points.times)
            has_steps = bool(stepped.all())
        except UnorderedError:
            has_steps = False
        fine = Blocks.of(points.times, points.floats(), logged if has_steps else None, BLOCK_POINTS)
        coarse = fine.joined(np.arange(0, len(fine), _JOINED))
        summary = (
            int(logged.min()) if has_steps else None,
            int(logged.max()) if has_steps else None,
            int(has_steps and bool(np.all(logged[1:] >= logged[:-1]))),
        )
        blobs = coarse.encode().tobytes(), compress_words(fine.encode())
        seal = rollup_seal(row[0], Span(seq, segment.n, segment.t_min, segment.t_max), series, summary)
        rows.append((row[0], *summary, *blobs, seal, *(checksum(row[0], blob) for blob in blobs)))
    return rows


def rollup_seal(segment: int, span: Span, series: int, summary: Sequence[int | None]) -> int:
    """Return the checksum of a rollup's row without its blobs.

    The checksum covers the segment's place in its series and not the segment's own checksum. That one comes after the
    segment's points in the file, so that reading it would read all points.

    Args:
        segment: Row ID of the segment.
        span: Range of the segment.
        series: Row ID of the series.
        summary: Lowest step, highest step, and whether the steps ascend.
    """
    return checksum(segment, series, span.seq, span.n, span.t_min, span.t_max, *summary)


def is_rollup_sound(
    connection: sqlite3.Connection,
    seal: int | None,
    segment: int,
    span: Span,
    series: int,
    summary: Sequence[int | None],
) -> bool:
    """Return whether a rollup's row matches its checksum. The arguments are those of `rollup_seal`.

    Earlier versions included the checksum of the segment.
    """
    if seal is None or seal == rollup_seal(segment, span, series, summary):
        return True
    row = connection.execute("SELECT seal FROM chunk WHERE id = ?", (segment,)).fetchone()
    return row is not None and is_sound(seal, segment, series, span.seq, row[0], *summary)


def insert_rollups(connection: sqlite3.Connection, rows: Sequence[tuple[object, ...]]) -> None:
    """Write rows from `build_rollups` inside the caller's transaction, except for segments that no longer exist."""
    connection.executemany(
        f"INSERT OR REPLACE INTO sample ({ROLLUP_COLUMNS}) SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?"
        " WHERE EXISTS (SELECT 1 FROM chunk WHERE id = ?)",
        [(*row, row[0]) for row in rows],
    )


def read_rollups(
    connection: sqlite3.Connection,
    snapshots: Sequence[MemtableSnapshot],
    rows: Sequence[SeriesRow],
    window: PointRange,
    selection: Selection,
    *,
    blocks: int,
    gaps: Mapping[int, NDArray[np.int64]],
) -> list[SeriesRollup] | None:
    """Read series as `Store.read_rollups` does, and add the given gaps.

    Raises:
        TooManyPointsError: The read needs more points than the selection's limit.
    """
    for row in rows:
        selection.check()
        if _has_rollups(connection, row[0]):
            break
    else:
        return None
    reader = _RollupReader(connection, snapshots, window, blocks, selection.limit - sum(map(len, gaps.values())))
    try:
        rollups: list[SeriesRollup] = []
        for row in rows:
            selection.check()
            with skip_damaged(connection, selection.damaged):
                rollups += [replace(piece, gaps=gaps.get(row[0], NO_GAPS)) for piece in reader.series(row)]
        return rollups
    except UnorderedError:
        return None


class _RollupReader:
    """A reader of several series that share one point limit."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        snapshots: Sequence[MemtableSnapshot],
        window: PointRange,
        blocks: int,
        limit: int,
    ) -> None:
        self._connection = connection
        self._snapshots = snapshots
        self._window = window
        self._blocks = blocks
        self._limit = limit
        self._read_points = 0
        self._steps: _Steps | None = None
        self._listed: tuple[int, Sequence[Span]] | None = None  # the last series and its segments

    def series(self, row: SeriesRow) -> Iterator[SeriesRollup]:
        """Read a series. Yields one rollup, or nothing if no points are selected."""
        series, process, metric, kind, attributes, scope, unit = row
        track = process, metric
        steps = self._steps_of(series, track)
        if self._window.by_step and steps is None:
            return
        window = self._window if steps is not None else replace(self._window, begins={})
        full_segments, seqs = self._select_segments(series, track, window)
        points = self._read(series, seqs, metric)
        full_segments, points = self._split_overlapping(series, full_segments, points, metric)
        stepped: NDArray[np.int64] | None = None
        if steps is not None:
            logged, has_step = steps.at(points.times)
            mask = window.mask(track, points.times, logged, has_step)
            points, stepped = points[mask], logged[mask]
        else:
            none = np.zeros(len(points), np.int64)
            points = points[window.mask(track, points.times, none, none.astype(np.bool_))]
        identity = (process, metric, parse_kind(kind), json.loads(attributes))
        if not full_segments:
            if len(points):
                if stepped is None:
                    stepped = np.zeros(len(points), np.int64)
                yield SeriesRollup(*identity, points, stepped, None, scope, unit)
            return
        yield SeriesRollup(*identity, None, None, self._join(series, full_segments, points, stepped), scope, unit)

    def _steps_of(self, series: int, track: Track) -> "_Steps | None":
        """Return the steps of a series' process; None if steps are not needed or do not exist."""
        if not self._window.needs_steps(track):
            return None
        row = _process_of(self._connection, series)
        if self._steps is None or self._steps.process != row:
            self._steps = _Steps(self._connection, self._snapshots, row)
        if self._steps.ambiguous:
            raise UnorderedError
        return self._steps if self._steps.any() else None

    def _select_segments(self, series: int, track: Track, window: PointRange) -> tuple[list[_Full], list[int]]:
        """Return full segments to read as rollups, and the numbers of the segments to read as points.

        The segments to read as rollups do not overlap.
        """
        candidates: list[_Full] = []
        seqs: list[int] = []
        rows = self._connection.execute(
            "SELECT chunk.id, seq, n, t_min, t_max, sample.chunk, step_min, step_max, ascending, sample.seal"
            " FROM chunk LEFT JOIN sample ON sample.chunk = chunk.id WHERE series = ? ORDER BY t_min",
            (series,),
        ).fetchall()
        listed_spans = {span.seq: span for span in self._spans(series)}
        for segment, seq, n, t_min, t_max, rollup, step_min, step_max, ascending, seal in rows:
            span = Span(seq, n, t_min, t_max)
            if listed_spans.pop(seq, None) != span:
                text = f"segment {seq} of series {series}: its row does not match the SQLite index"
                raise DamagedError(text, series=series)
            summary = step_min, step_max, ascending
            if rollup is not None and not is_rollup_sound(self._connection, seal, segment, span, series, summary):
                text = f"rollups of segment {seq} of series {series}: the checksum does not match"
                raise DamagedError(text, series=series)
            steps = None if step_min is None else (step_min, step_max)
            if rollup is not None:
                candidates.append(_Full(segment, seq, n, (t_min, t_max), steps, bool(ascending)))
            elif window.takes(track, (t_min, t_max), None) is not False:
                seqs.append(seq)
        if listed_spans:
            raise DamagedError(f"series {series}: some segments are missing", series=series)
        full, partial = select_rollups(candidates, track, window)
        seqs += [segment.seq for segment in partial]
        if sum(segment.n for segment in full) < self._blocks * BLOCK_POINTS:
            return [], seqs + [segment.seq for segment in full]
        return full, seqs

    def _split_overlapping(
        self, series: int, full: Sequence[_Full], points: Points, metric: str
    ) -> tuple[list[_Full], Points]:
        """Exclude full segments whose time range contains other points, and read their points.

        Returns:
            Remaining full segments, and the given points merged with those of the excluded segments.
        """
        separate, mixed = separate_rollups(full, points.times)
        if mixed:
            stored = self._read(series, [segment.seq for segment in mixed], metric, include_memory=False)
            points = Points.concat([stored, points]).distinct()
        return separate, points

    def _spans(self, series: int) -> Sequence[Span]:
        if self._listed is None or self._listed[0] != series:
            self._listed = series, spans(self._connection, series)
        return self._listed[1]

    def _read(self, series: int, seqs: Sequence[int], metric: str, *, include_memory: bool = True) -> Points:
        memory = (
            [snapshot.series[series] for snapshot in self._snapshots if series in snapshot.series]
            if include_memory
            else []
        )
        wanted_seqs = {*seqs}
        selected = [span for span in self._spans(series) if span.seq in wanted_seqs]
        self._read_points += sum(span.n for span in selected) + sum(series_buffer.n for series_buffer in memory)
        check_limit(self._read_points, self._limit, [metric])
        parts = [decode_segment(segment) for segment in find_segments(self._connection, series, selected)]
        parts += [part for series_buffer in memory for part in series_buffer.parts if isinstance(part, Points)]
        return Points.concat(parts).distinct()

    def _join(self, series: int, full: Sequence[_Full], points: Points, steps: NDArray[np.int64] | None) -> Blocks:
        """Join the rollups of full segments and the points between them into one sequence of blocks."""
        by_step = self._window.by_step
        if by_step and not all(segment.ascending for segment in full):
            raise UnorderedError
        coarse = sum(segment.n for segment in full) >= self._blocks * BLOCK_POINTS * _JOINED
        stored = _read_blocks(self._connection, series, [segment.row for segment in full], coarse=coarse)
        size = BLOCK_POINTS * (_JOINED if coarse else 1)
        return join_rollups(full, [stored], points, steps, by_step=by_step, size=size)


class _Steps:
    """The steps of one process, in memory and in segments, as of one snapshot and for use by one thread.

    Attributes:
        ambiguous: Whether several series contain steps.
    """

    def __init__(self, connection: sqlite3.Connection, snapshots: Sequence[MemtableSnapshot], process: int) -> None:
        self.process = process
        self._connection = connection
        rows = connection.execute(
            "SELECT id, kind FROM series WHERE process = ? AND metric = ?", (process, STEP_METRIC)
        ).fetchall()
        numeric = [row[0] for row in rows if parse_kind(row[1]).numeric]
        self.ambiguous = len(numeric) > 1
        self._series = numeric[0] if len(numeric) == 1 else None
        self._spans: dict[int, Span] = {}
        self._cache: OrderedDict[int, Points] = OrderedDict()
        parts: list[Points] = []
        if self._series is not None:
            self._spans = {span.seq: span for span in spans(connection, self._series)}
            memory = [snapshot.series[self._series] for snapshot in snapshots if self._series in snapshot.series]
            parts = [part for buffer in memory for part in buffer.parts if isinstance(part, Points)]
        self._in_memory = Points.concat(parts).distinct()

    def any(self) -> bool:
        """Return whether there are any steps."""
        return bool(self._spans) or len(self._in_memory) > 0

    def at(self, times: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the steps at ascending times; see `steps_at`. Raises UnorderedError if a step is not an integer."""
        parts: list[Points] = []
        for span in self._spans.values():
            index = int(np.searchsorted(times, span.t_min))
            if index < len(times) and times[index] <= span.t_max:
                parts.append(self._segment(span))
        if len(times):
            first, last = np.searchsorted(self._in_memory.times, [times[0], times[-1] + 1])
            parts.append(self._in_memory[first:last])
        steps = Points.concat(parts).distinct()
        if not steps.integers.all():
            raise UnorderedError
        return steps_at(steps, times)

    def _segment(self, span: Span) -> Points:
        points = self._cache.get(span.seq)
        if points is None:
            assert self._series is not None
            (segment,) = find_segments(self._connection, self._series, [span])
            points = self._cache[span.seq] = decode_segment(segment)
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return points


def _read_blocks(connection: sqlite3.Connection, series: int, segments: Sequence[int], *, coarse: bool) -> Blocks:
    """Read rollups of some segments of a series. The blocks may be in any order."""
    name = "coarse" if coarse else "fine"
    by_size: dict[int, list[bytes]] = defaultdict(list)
    for segment in segments:
        blob, seal = connection.execute(
            f"SELECT {name}, {name}_seal FROM sample WHERE chunk = ?", (segment,)
        ).fetchone()
        verify(f"rollups of series {series}", seal, segment, blob, series=series)
        if not coarse:
            blob = decompress_words(blob)
        by_size[len(blob)].append(blob)
    # Nearly always, all blobs have the same size and are decoded in one call.
    return Blocks.concat(
        Blocks.decode(np.frombuffer(b"".join(blobs), "<i8").reshape(len(blobs), Blocks.ROWS, -1))
        for blobs in by_size.values()
    )


def _has_rollups(connection: sqlite3.Connection, series: int) -> bool:
    result = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM chunk JOIN sample ON sample.chunk = chunk.id WHERE series = ?)", (series,)
    )
    return bool(result.fetchone()[0])


def _process_of(connection: sqlite3.Connection, series: int) -> int:
    return int(connection.execute("SELECT process FROM series WHERE id = ?", (series,)).fetchone()[0])
