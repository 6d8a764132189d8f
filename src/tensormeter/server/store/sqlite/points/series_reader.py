"""Functions that read the points of selected metrics in a run, within a limit."""

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from tensormeter.conventions.semconv import RANK
from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.models.metric_kind import parse_kind
from tensormeter.server.store.models.points import Blobs, Column, Points
from tensormeter.server.store.models.runs import ProcessAttempt
from tensormeter.server.store.models.series import NO_GAPS, Selection, Series, SeriesFilter
from tensormeter.server.store.rules.limits import check_limit
from tensormeter.server.store.sqlite.integrity.damage import skip_damaged
from tensormeter.server.store.sqlite.integrity.seals import PROCESS, SERIES
from tensormeter.server.store.sqlite.points.first_steps import read_first_steps
from tensormeter.server.store.sqlite.points.gaps import read_gaps
from tensormeter.server.store.sqlite.points.memtable import MemtableSnapshot
from tensormeter.server.store.sqlite.points.segment_batches import (
    SegmentBatches,
    SeriesSpans,
    count_in_memory,
    spans_between,
)
from tensormeter.server.store.sqlite.points.segment_rows import list_spans, sound_list

__all__ = ["SeriesRow", "find_attempts", "find_series", "new_series", "read_series", "to_series"]

SeriesRow = tuple[int, str, str, str, str, str, str]
"""Row ID, process, metric, kind, attributes, scope and unit."""


def find_series(connection: sqlite3.Connection, run: int, selection: Selection) -> list[SeriesRow]:
    """Return the selected series of a run, ordered by metric, process and attributes."""
    condition, values = _condition(selection.accepts)
    rows = connection.execute(
        f"SELECT {SERIES.selection}, process.process FROM process JOIN series ON series.process = process.id"
        f" WHERE run = ? AND metric IN ({', '.join('?' * len(selection.metrics))}) AND process.process = ifnull(?, process.process)"
        f"{condition} ORDER BY metric, process.process, attributes, kind, scope",
        (run, *selection.metrics, selection.process, *values),
    ).fetchall()
    damaged_processes = _damaged_processes(connection, run, {row[1] for row in rows})
    selected: list[SeriesRow] = []
    for *row, process in rows:
        series, process_id, metric, kind, scope, attributes, unit, *_ = row
        with skip_damaged(connection, selection.damaged):
            SERIES.verify(row, f"the row of series {series}", series=series)
            if process_id in damaged_processes:
                raise damaged_processes[process_id]
            parsed, accepts = parse_kind(kind), selection.accepts
            if parsed.numeric != selection.numeric:
                continue
            if accepts is None or accepts.accepts(metric, parsed, scope, unit, attributes):
                selected.append((series, process, metric, kind, attributes, scope, unit))
    return selected


def _condition(accepts: SeriesFilter | None) -> tuple[str, list[str]]:
    """Return a condition that rows of accepted series meet, and its values."""
    texts = [] if accepts is None else accepts.texts()
    if accepts is None or not texts:
        return "", []
    others = f"metric NOT IN ({', '.join('?' * len(accepts.metrics))})"
    contained = " AND ".join(["instr(attributes, ?)"] * len(texts))
    return f" AND ({others} OR ({contained}))", [*accepts.metrics, *texts]


def _damaged_processes(connection: sqlite3.Connection, run: int, processes: Collection[int]) -> dict[int, DamagedError]:
    """Return the damage of those processes whose rows are damaged."""
    damaged: dict[int, DamagedError] = {}
    rows = connection.execute(
        f"SELECT {PROCESS.selection} FROM json_each(?) AS wanted CROSS JOIN process ON process.id = wanted.value",
        (json.dumps([*processes]),),
    )
    for row in rows:
        try:
            PROCESS.verify(row, f"the row of process {row[2]!r} of run {run}")
        except DamagedError as error:
            damaged[row[0]] = error
    return damaged


def find_attempts(
    connection: sqlite3.Connection, run: int, metrics: Sequence[str]
) -> tuple[dict[str, ProcessAttempt], int]:
    """Return the attempts of a run's processes, and the number of the journal row that last changed an attempt's start.

    The attempts contain the first steps of the given metrics.

    If all processes belong to attempt 1, the result is an empty dict and 0.
    """
    if connection.execute("SELECT max(attempt) FROM process WHERE run = ?", (run,)).fetchone()[0] in (None, 1):
        return {}, 0
    rows = connection.execute(
        f"SELECT {PROCESS.selection}, json_extract(resource, '$.\"{RANK}\"') FROM process WHERE run = ?",
        (run,),
    ).fetchall()
    attempts: dict[str, ProcessAttempt] = {}
    first_steps, changed = read_first_steps(connection, run, metrics)
    for *row, rank in rows:
        _, _, process, number, _, _, _, _, _, began, began_seq, _ = row
        PROCESS.verify(row, f"the row of process {process!r} of run {run}")
        attempts[process] = ProcessAttempt(
            number, first_steps.get(process, {}), began or 0, rank if isinstance(rank, int) else None
        )
        changed = max(changed, began_seq or 0)
    return attempts, changed


def read_series(
    connection: sqlite3.Connection,
    snapshots: Sequence[MemtableSnapshot],
    rows: Sequence[SeriesRow],
    selection: Selection,
    newer: Mapping[int, Sequence[Column]] = MappingProxyType({}),
) -> list[Series]:
    """Read the selected points of these series, regardless of when they arrived.

    Args:
        connection: Connection to read with.
        snapshots: Points in memory.
        rows: Series to read.
        selection: Points to read.
        newer: Points to omit, as parts by row ID of the series.

    Raises:
        TooManyPointsError: The read needs more points than the selection's limit.
    """
    start, stop = selection.start, selection.stop
    lists = list_spans(connection, [row[0] for row in rows])
    total = 0
    sound: list[SeriesSpans] = []
    for row in rows:
        selection.check()
        with skip_damaged(connection, selection.damaged):
            spans = spans_between(sound_list(lists[row[0]]), start, stop)
            total += sum(span.n for span in spans) + count_in_memory(snapshots, row[0])
            sound.append((row[0], spans))
    metrics = {row[2] for row in rows}
    check_limit(total, selection.limit, metrics)
    gaps: Mapping[int, NDArray[np.int64]] = {}
    if selection.gaps:
        gaps = read_gaps(connection, (series for series, _ in sound), start, stop, selection.limit - total)
        check_limit(total + sum(map(len, gaps.values())), selection.limit, metrics)
    by_id = {row[0]: row for row in rows}
    reader = SegmentBatches(connection, snapshots, selection)
    found = ((series, _without(points, newer.get(series, ()))) for series, points in reader.read(sound))
    return [to_series(by_id[series], points, gaps.get(series, NO_GAPS)) for series, points in found if len(points)]


def _without(points: Column, parts: Sequence[Column]) -> Column:
    """Return the points at other times than those of the given parts."""
    if not parts:
        return points
    omitted = np.isin(points.times, np.concatenate([part.times for part in parts]))
    return points[~omitted] if omitted.any() else points


def new_series(rows: Sequence[SeriesRow], parts: Mapping[int, Sequence[Column]], selection: Selection) -> list[Series]:
    """Create series from newly arrived points, given as parts by row ID."""
    column = Points if selection.numeric else Blobs
    result = []
    for row in rows:
        selection.check()
        if row[0] in parts:
            result.append(to_series(row, column.concat(parts[row[0]]).distinct()))  # type: ignore[arg-type]
    return result


def to_series(row: SeriesRow, points: Column, gaps: NDArray[np.int64] = NO_GAPS) -> Series:
    """Return a series with the given points and gaps."""
    _, process, metric, kind, attributes, scope, unit = row
    return Series(process, metric, parse_kind(kind), json.loads(attributes), points, scope, unit, gaps)
