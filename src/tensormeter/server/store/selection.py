"""Selecting a metric's points: joining them with their steps, cutting a range of x, and putting them in order."""

import json
import sqlite3
from collections.abc import Sequence

import numpy as np

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.server.store import Series, TooManyPointsError, XAxis
from tensormeter.server.store.heads import Layer
from tensormeter.server.store.points import Points
from tensormeter.server.store.reader import count_points, read_points, steps_at

__all__ = ["read_series"]


def read_series(
    connection: sqlite3.Connection,
    layers: Sequence[Layer],
    run: int,
    metric: str,
    *,
    process: str | None,
    x: XAxis,
    start: int | None,
    stop: int | None,
    limit: int,
) -> list[Series]:
    """What `Store.series` returns, for a run by row id.

    Raises:
        TooManyPointsError: More than `limit` points would be returned, or looked at in one series for a range of steps.
    """
    times = (start, stop) if x == "time" else (None, None)
    rows = connection.execute(
        "SELECT series.id, process.id, process.process, attributes"
        " FROM process JOIN series ON series.process = process.id"
        " WHERE run = ? AND metric = ? AND process.process = ifnull(?, process.process)"
        " ORDER BY process.process, attributes",
        (run, metric, process),
    ).fetchall()
    counts = [count_points(connection, layers, row[0], *times) for row in rows]
    ranged = start is not None or stop is not None
    # A range of steps is known only after reading; so that must have a bound too.
    if max(counts, default=0) > 4 * limit or (not ranged and sum(counts) > limit):
        raise _too_many(metric, sum(counts), limit)
    found: list[Series] = []
    for series, process_row, name, attributes in rows:
        points = read_points(connection, layers, series, *times)
        if not len(points):
            continue
        steps, stepped = steps_at(_steps(connection, layers, process_row, points), points.times)
        if x == "step":
            if ranged:
                inside = stepped.copy()
                if start is not None:
                    inside &= steps >= start
                if stop is not None:
                    inside &= steps < stop
                points, steps, stepped = points[inside], steps[inside], stepped[inside]
            if not stepped.all() or np.any(steps[1:] < steps[:-1]):
                order = np.lexsort((points.times, steps, ~stepped))
                points, steps, stepped = points[order], steps[order], stepped[order]
        found.append(Series(name, json.loads(attributes), points, steps, stepped))
        total = sum(len(series.points) for series in found)
        if total > limit:
            raise _too_many(metric, total, limit)
    return found


def _steps(connection: sqlite3.Connection, layers: Sequence[Layer], process: int, points: Points) -> Points:
    """The steps of a process over the time that `points` (by time, not empty) span."""
    rows = connection.execute(
        "SELECT id FROM series WHERE process = ? AND metric = ?", (process, STEP_METRIC)
    ).fetchall()
    start, stop = int(points.times[0]), int(points.times[-1]) + 1
    return Points.concat(read_points(connection, layers, row[0], start, stop) for row in rows).distinct()


def _too_many(metric: str, points: int, limit: int) -> TooManyPointsError:
    return TooManyPointsError(
        f"metric {metric!r} has {points} points here, more than the limit of {limit} for one answer; "
        "ask for one process with `process`, or for a range with `x=time` and `start` and `stop`",
    )
