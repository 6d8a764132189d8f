"""Samples of chunks: made once a chunk is full, and read instead of its points.

A full chunk never changes, so neither do its samples. There are fine ones, of blocks of 512 points, and coarse ones, of 4,096.
They carry steps if every point of the chunk has one; what has not is looked at point by point where steps matter.
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
from tensormeter.server.store.models.point_range import PointRange
from tensormeter.server.store.models.points import Points, steps_at
from tensormeter.server.store.models.rollup_blocks import BLOCK_POINTS, FIRST, LAST, Blocks
from tensormeter.server.store.models.series import NO_GAPS, Selection, Thinned
from tensormeter.server.store.rules.limits import check_limit
from tensormeter.server.store.sqlite.integrity.damage import skip_damaged
from tensormeter.server.store.sqlite.integrity.seals import checksum, verify
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

__all__ = ["SegmentKey", "build_rollups", "find_missing_rollups", "read_thinned"]

_JOINED: Final = 8
"""Fine blocks in a coarse one."""

ROLLUP_COLUMNS: Final = "chunk, step_min, step_max, ascending, coarse, fine, seal, coarse_seal, fine_seal"
"""Columns of the table `sample`."""

_CACHED: Final = 4
"""Chunks of steps that are kept decoded: metrics of a process were folded together, so they share them."""

SegmentKey = tuple[int, int]
"""(series, order within the series) of a full chunk of numbers without samples."""


@dataclass(frozen=True)
class _Full:
    """A full chunk that has samples. `steps`: the lowest and the highest, if all points have one."""

    segment: int
    seq: int
    n: int
    times: tuple[int, int]
    steps: tuple[int, int] | None
    ascending: bool


class _UnorderedError(Exception):
    """Steps are not in the order of time, or not plain: only points can say."""


def find_missing_rollups(connection: sqlite3.Connection) -> list[SegmentKey]:
    """Full chunks of numbers without samples, as older versions and kills leave them."""
    rows = connection.execute(
        "SELECT chunk.series, chunk.seq FROM chunk LEFT JOIN sample ON sample.chunk = chunk.id"
        " WHERE chunk.n >= ? AND sample.chunk IS NULL ORDER BY chunk.series, chunk.seq",
        (segments.SEGMENT_POINTS,),
    )
    return [(series, seq) for series, seq in rows]


def build_rollups(connection: sqlite3.Connection, wanted: Sequence[SegmentKey]) -> list[tuple[object, ...]]:
    """Rows for the table `sample`, of those chunks that are still there; writes nothing."""
    found: list[tuple[object, ...]] = []
    steps: _Steps | None = None
    for series, seq in wanted:
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
            known = bool(stepped.all())
        except _UnorderedError:
            known = False
        fine = Blocks.of(points.times, points.floats(), logged if known else None, BLOCK_POINTS)
        coarse = fine.joined(np.arange(0, len(fine), _JOINED))
        about = (
            int(logged.min()) if known else None,
            int(logged.max()) if known else None,
            int(known and bool(np.all(logged[1:] >= logged[:-1]))),
        )
        blobs = coarse.encode().tobytes(), compress_words(fine.encode())
        seal = checksum(row[0], series, seq, row[-1], *about)
        found.append((row[0], *about, *blobs, seal, *(checksum(row[0], blob) for blob in blobs)))
    return found


def insert_rollups(connection: sqlite3.Connection, rows: Sequence[tuple[object, ...]]) -> None:
    """Write what `build_rollups` made; inside the caller's transaction.

    A chunk that has been removed meanwhile is passed over.
    """
    connection.executemany(
        f"INSERT OR REPLACE INTO sample ({ROLLUP_COLUMNS}) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9 WHERE EXISTS (SELECT 1 FROM chunk WHERE id = ?1)",
        rows,
    )


def read_thinned(
    connection: sqlite3.Connection,
    snapshots: Sequence[MemtableSnapshot],
    rows: Sequence[SeriesRow],
    window: PointRange,
    selection: Selection,
    *,
    blocks: int,
    gaps: Mapping[int, NDArray[np.int64]],
) -> list[Thinned] | None:
    """What `Store.thin` returns, of these series with these gaps.

    Raises:
        TooManyPointsError: More points than the selection's limit would be looked at.
    """
    for row in rows:
        selection.check()
        if _has_rollups(connection, row[0]):
            break
    else:
        return None
    thinner = _Thinner(connection, snapshots, window, blocks, selection.limit - sum(map(len, gaps.values())))
    try:
        found: list[Thinned] = []
        for row in rows:
            selection.check()
            with skip_damaged(connection, selection.damaged):
                found += [replace(one, gaps=gaps.get(row[0], NO_GAPS)) for one in thinner.series(row)]
        return found
    except _UnorderedError:
        return None


class _Thinner:
    """Reads series one after another, within one limit."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        snapshots: Sequence[MemtableSnapshot],
        window: PointRange,
        blocks: int,
        limit: int,
    ) -> None:
        self._connection = connection
        self._layers = snapshots
        self._window = window
        self._blocks = blocks
        self._limit = limit
        self._looked_at = 0
        self._steps: _Steps | None = None

    def series(self, row: SeriesRow) -> Iterator[Thinned]:
        """A series, if it has any points that are wanted."""
        series, process, metric, kind, attributes, scope, unit = row
        steps = self._steps_of(series, process)
        if self._window.by_step and steps is None:
            return
        window = self._window if steps is not None else replace(self._window, begins={})
        full, loose = self._select_segments(series, process, window)
        points = self._read(series, loose, metric)
        full, points = self._split_overlapping(series, full, points, metric)
        stepped: NDArray[np.int64] | None = None
        if steps is not None:
            logged, known = steps.at(points.times)
            mask = window.mask(process, points.times, logged, known)
            points, stepped = points[mask], logged[mask]
        else:
            none = np.zeros(len(points), np.int64)
            points = points[window.mask(process, points.times, none, none.astype(np.bool_))]
        about = (process, metric, parse_kind(kind), json.loads(attributes))
        if not full:
            if len(points):
                if stepped is None:
                    stepped = np.zeros(len(points), np.int64)
                yield Thinned(*about, points, stepped, None, scope, unit)
            return
        yield Thinned(*about, None, None, self._join(series, full, points, stepped), scope, unit)

    def _steps_of(self, series: int, process: str) -> "_Steps | None":
        """The steps of a series' process, if they matter and there are any."""
        if not self._window.needs_steps(process):
            return None
        row = _process_of(self._connection, series)
        if self._steps is None or self._steps.process != row:
            self._steps = _Steps(self._connection, self._layers, row)
        if self._steps.ambiguous:
            raise _UnorderedError
        return self._steps if self._steps.any() else None

    def _select_segments(self, series: int, process: str, window: PointRange) -> tuple[list[_Full], list[int]]:
        """Full chunks that are wanted as a whole and lie apart; order numbers of those that must be looked into."""
        full: list[_Full] = []
        loose: list[int] = []
        total = 0
        rows = self._connection.execute(
            "SELECT chunk.id, seq, n, t_min, t_max, sample.chunk, step_min, step_max, ascending, chunk.seal, sample.seal"
            " FROM chunk LEFT JOIN sample ON sample.chunk = chunk.id WHERE series = ? ORDER BY t_min",
            (series,),
        ).fetchall()
        known = {span.seq: span for span in spans(self._connection, series)}
        for segment, seq, n, t_min, t_max, sampled, step_min, step_max, ascending, segment_seal, seal in rows:
            if known.pop(seq, None) != Span(seq, n, t_min, t_max):
                raise DamagedError(f"chunk {seq} of series {series}: it is not where the index has it", series=series)
            if sampled is not None:
                about = (segment, series, seq, segment_seal, step_min, step_max, ascending)
                verify(f"samples of chunk {seq} of series {series}", seal, *about, series=series)
            steps = None if step_min is None else (step_min, step_max)
            taken = window.takes(process, (t_min, t_max), steps)
            if taken is False:
                continue
            if not taken or sampled is None:
                loose.append(seq)
                continue
            one = _Full(segment, seq, n, (t_min, t_max), steps, bool(ascending))
            total += n
            while full and full[-1].times[1] >= t_min:
                # Of two that overlap, the one that is longer in time is looked into: few points of it are far from the others.
                longer = max(full[-1], one, key=_duration)
                loose.append(longer.seq)
                if longer is one:
                    break
                full.pop()
            else:
                full.append(one)
        if known:
            raise DamagedError(f"chunks of series {series}: some are missing", series=series)
        if total < self._blocks * BLOCK_POINTS:
            return [], loose + [one.seq for one in full]
        return full, loose

    def _split_overlapping(
        self, series: int, full: Sequence[_Full], points: Points, metric: str
    ) -> tuple[list[_Full], Points]:
        """Those full chunks between whose times there are no points, and the points with those of the others."""
        apart: list[_Full] = []
        mixed: list[_Full] = []
        for one in full:
            first, last = np.searchsorted(points.times, [one.times[0], one.times[1] + 1])
            (mixed if last > first else apart).append(one)
        if mixed:
            stored = self._read(series, [one.seq for one in mixed], metric, buffers=False)
            points = Points.concat([stored, points]).distinct()
        return apart, points

    def _read(self, series: int, seqs: Sequence[int], metric: str, *, buffers: bool = True) -> Points:
        held = [snapshot.series[series] for snapshot in self._layers if series in snapshot.series] if buffers else []
        asked = {*seqs}
        wanted = [span for span in spans(self._connection, series) if span.seq in asked]
        self._looked_at += sum(span.n for span in wanted) + sum(buffer.n for buffer in held)
        check_limit(self._looked_at, self._limit, [metric])
        parts = [decode_segment(segment) for segment in find_segments(self._connection, series, wanted)]
        parts += [part for buffer in held for part in buffer.parts if isinstance(part, Points)]
        return Points.concat(parts).distinct()

    def _join(self, series: int, full: Sequence[_Full], points: Points, steps: NDArray[np.int64] | None) -> Blocks:
        """One sequence of blocks out of full chunks and the points between them."""
        by_step = self._window.by_step
        if by_step and not all(one.ascending for one in full):
            raise _UnorderedError
        coarse = sum(one.n for one in full) >= self._blocks * BLOCK_POINTS * _JOINED
        parts = [_read_blocks(self._connection, series, [one.segment for one in full], coarse=coarse)]
        edges = np.searchsorted(points.times, [one.times[0] for one in full])
        size = BLOCK_POINTS * (_JOINED if coarse else 1)
        for index in np.split(np.arange(len(points)), edges):
            if len(index):
                part = points[index]
                logged = None if steps is None else steps[index]
                if by_step and logged is not None and np.any(logged[1:] < logged[:-1]):
                    raise _UnorderedError
                parts.append(Blocks.of(part.times, part.floats(), logged, size))
        joined = Blocks.concat(parts)
        joined = joined[np.argsort(joined.times[:, FIRST], kind="stable")]
        if by_step and np.any(joined.steps[1:, FIRST] < joined.steps[:-1, LAST]):
            raise _UnorderedError
        return joined


class _Steps:
    """The steps of one process, in memory and in chunks. For one snapshot and one thread.

    Attributes:
        ambiguous: Several series say what step it is.
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
            held = [snapshot.series[self._series] for snapshot in snapshots if self._series in snapshot.series]
            parts = [part for buffer in held for part in buffer.parts if isinstance(part, Points)]
        self._memtable = Points.concat(parts).distinct()

    def any(self) -> bool:
        """Whether there are any steps."""
        return bool(self._spans) or len(self._memtable) > 0

    def at(self, times: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """See `steps_at`; `times` ascend. Raises _UnorderedError: there are steps that are no integers."""
        parts: list[Points] = []
        for span in self._spans.values():
            index = int(np.searchsorted(times, span.t_min))
            if index < len(times) and times[index] <= span.t_max:
                parts.append(self._segment(span))
        if len(times):
            first, last = np.searchsorted(self._memtable.times, [times[0], times[-1] + 1])
            parts.append(self._memtable[first:last])
        steps = Points.concat(parts).distinct()
        if not steps.integers.all():
            raise _UnorderedError
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


def _read_blocks(connection: sqlite3.Connection, series: int, wanted: Sequence[int], *, coarse: bool) -> Blocks:
    """The samples of some chunks of a series, not necessarily in their order."""
    name = "coarse" if coarse else "fine"
    by_size: dict[int, list[bytes]] = defaultdict(list)
    for segment in wanted:
        blob, seal = connection.execute(
            f"SELECT {name}, {name}_seal FROM sample WHERE chunk = ?", (segment,)
        ).fetchone()
        verify(f"samples of series {series}", seal, segment, blob, series=series)
        if not coarse:
            blob = decompress_words(blob)
        by_size[len(blob)].append(blob)
    # Nearly always they are all of one size, and this is one look at many.
    return Blocks.concat(
        Blocks.decode(np.frombuffer(b"".join(blobs), "<i8").reshape(len(blobs), Blocks.ROWS, -1))
        for blobs in by_size.values()
    )


def _has_rollups(connection: sqlite3.Connection, series: int) -> bool:
    found = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM chunk JOIN sample ON sample.chunk = chunk.id WHERE series = ?)", (series,)
    )
    return bool(found.fetchone()[0])


def _process_of(connection: sqlite3.Connection, series: int) -> int:
    return int(connection.execute("SELECT process FROM series WHERE id = ?", (series,)).fetchone()[0])


def _duration(segment: _Full) -> int:
    return segment.times[1] - segment.times[0]
