"""Functions that read the points of selected metrics in a run, within a limit."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tensormeter.conventions.semconv import RANK
from tensormeter.server.store.models.metric_kind import parse_kind
from tensormeter.server.store.models.points import Blobs, Column, Points
from tensormeter.server.store.models.runs import ProcessAttempt
from tensormeter.server.store.models.series import NO_GAPS, Selection, Series
from tensormeter.server.store.rules.limits import check_limit
from tensormeter.server.store.sqlite.integrity.damage import skip_damaged
from tensormeter.server.store.sqlite.integrity.seals import PROCESS, SERIES
from tensormeter.server.store.sqlite.points.gaps import read_gaps
from tensormeter.server.store.sqlite.points.memtable import MemtableSnapshot
from tensormeter.server.store.sqlite.points.segment_reader import count_points, read_points

__all__ = ["SeriesRow", "find_attempts", "find_series", "new_series", "read_series"]

SeriesRow = tuple[int, str, str, str, str, str, str]
"""Row ID, process, metric, kind, attributes, scope and unit."""


def find_series(connection: sqlite3.Connection, run: int, selection: Selection) -> list[SeriesRow]:
    """Return the selected series of a run, ordered by metric, process and attributes."""
    rows = connection.execute(
        f"SELECT {SERIES.selection}, process.process FROM process JOIN series ON series.process = process.id"
        f" WHERE run = ? AND metric IN ({', '.join('?' * len(selection.metrics))}) AND process.process = ifnull(?, process.process)"
        " ORDER BY metric, process.process, attributes, kind, scope",
        (run, *selection.metrics, selection.process),
    ).fetchall()
    selected: list[SeriesRow] = []
    verified: set[int] = set()
    for *row, process in rows:
        series, process_id, metric, kind, scope, attributes, unit, *_ = row
        with skip_damaged(connection, selection.damaged):
            SERIES.verify(row, f"the row of series {series}", series=series)
            if process_id not in verified:
                process_row = connection.execute(
                    f"SELECT {PROCESS.selection} FROM process WHERE id = ?", (process_id,)
                ).fetchone()
                PROCESS.verify(process_row, f"the row of process {process!r} of run {run}")
                verified.add(process_id)
            if parse_kind(kind).numeric == selection.numeric:
                selected.append((series, process, metric, kind, attributes, scope, unit))
    return selected


def find_attempts(connection: sqlite3.Connection, run: int) -> tuple[dict[str, ProcessAttempt], int]:
    """Return the attempts of a run's processes, and the number of the journal row that last changed an attempt's start.

    If all processes belong to attempt 1, the result is an empty dict and 0.
    """
    if connection.execute("SELECT max(attempt) FROM process WHERE run = ?", (run,)).fetchone()[0] in (None, 1):
        return {}, 0
    rows = connection.execute(
        f"SELECT {PROCESS.selection}, json_extract(resource, '$.\"{RANK}\"') FROM process WHERE run = ?",
        (run,),
    ).fetchall()
    attempts: dict[str, ProcessAttempt] = {}
    changed = 0
    for *row, rank in rows:
        _, _, process, number, _, _, _, _, first_step, began, began_seq, _ = row
        PROCESS.verify(row, f"the row of process {process!r} of run {run}")
        attempts[process] = ProcessAttempt(number, first_step, began or 0, rank if isinstance(rank, int) else None)
        changed = max(changed, began_seq or 0)
    return attempts, changed


def read_series(
    connection: sqlite3.Connection,
    snapshots: Sequence[MemtableSnapshot],
    rows: Sequence[SeriesRow],
    selection: Selection,
) -> list[Series]:
    """Read the selected points of these series, regardless of when they arrived.

    Raises:
        TooManyPointsError: The read needs more points than the selection's limit.
    """
    start, stop = selection.start, selection.stop
    total = 0
    sound: list[SeriesRow] = []
    for row in rows:
        selection.check()
        with skip_damaged(connection, selection.damaged):
            total += count_points(connection, snapshots, row[0], start, stop)
            sound.append(row)
    check_limit(total, selection.limit, {row[2] for row in rows})
    gaps: Mapping[int, NDArray[np.int64]] = {}
    if selection.gaps:
        gaps = read_gaps(connection, (row[0] for row in sound), start, stop, selection.limit - total)
        check_limit(total + sum(map(len, gaps.values())), selection.limit, {row[2] for row in rows})
    result = []
    for row in sound:
        selection.check()
        with skip_damaged(connection, selection.damaged):
            points = read_points(connection, snapshots, row[0], start, stop, numeric=selection.numeric)
            if len(points):
                result.append(replace(_series(row, points), gaps=gaps.get(row[0], NO_GAPS)))
    return result


def new_series(rows: Sequence[SeriesRow], parts: Mapping[int, Sequence[Column]], selection: Selection) -> list[Series]:
    """Create series from newly arrived points, given as parts by row ID."""
    column = Points if selection.numeric else Blobs
    result = []
    for row in rows:
        selection.check()
        if row[0] in parts:
            result.append(_series(row, column.concat(parts[row[0]]).distinct()))  # type: ignore[arg-type]
    return result


def _series(row: SeriesRow, points: Column) -> Series:
    _, process, metric, kind, attributes, scope, unit = row
    return Series(process, metric, parse_kind(kind), json.loads(attributes), points, scope, unit)
