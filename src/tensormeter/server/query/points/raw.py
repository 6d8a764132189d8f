"""Every point of a metric, number or distribution, exactly as it was logged, with its step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.otlp.check import Check, no_check
from tensormeter.server.query.points.shadowing import AttemptChoice, Attempts
from tensormeter.server.store import MAX_READ_POINTS, Column, Kind, Points, RunRef, Selection, Series, Store
from tensormeter.server.store.models.point_range import kept
from tensormeter.server.store.models.points import steps_at
from tensormeter.server.store.models.series import NO_GAPS

__all__ = ["FullSeries", "read_full"]


@dataclass(frozen=True, eq=False)
class FullSeries:
    """Points of one series, in the order asked for.

    Attributes:
        points: n points; of one process, with distinct times.
        steps: int64, shape (n,): the step logged at each point's time, where `stepped`; elsewhere 0.
        stepped: bool, shape (n,).
        gaps: int64, ascending: times at which the sender said that there is no value; none before the first point.
    """

    process: str
    attempt: int
    kind: Kind
    attributes: Mapping[str, Any]
    points: Column
    steps: NDArray[np.int64] = field(repr=False)
    stepped: NDArray[np.bool_] = field(repr=False)
    scope: str = ""
    unit: str = ""
    gaps: NDArray[np.int64] = field(default_factory=lambda: NO_GAPS, repr=False)


def read_full(
    store: Store,
    ref: RunRef,
    metric: str,
    *,
    numeric: bool = True,
    by_step: bool = True,
    process: str | None = None,
    start: int | None = None,
    stop: int | None = None,
    attempt: AttemptChoice = None,
    limit: int = MAX_READ_POINTS,
    check: Check = no_check,
) -> list[FullSeries]:
    """Every point of a metric, one entry a series.

    Args:
        numeric: Numbers (`Points`), or else distributions (`Blobs`).
        by_step: Order by (step, time), points without a step last; else by time.
        start: Only points with step (or time, in nanoseconds) >= start.
        stop: Only points with step (or time) < stop. A point without a step is in no range of steps.
        attempt: Which attempts. On the effective line, pieces of one line are one series, under the name of the latest.
        limit: Points to look at, at most; where they are numbers, the steps among them.
        check: Called for each series; whatever it raises ends the work.

    Raises:
        StoreError: As `Store.read`.
    """
    first, last = (None, None) if by_step else (start, stop)
    names = [metric, STEP_METRIC] if numeric else [metric]
    selection = Selection(names, process, numeric, start=first, stop=last, limit=limit, gaps=numeric, check=check)
    reading = store.read(ref, selection)
    stepping = reading
    if not numeric:
        stepping = store.read(ref, Selection([STEP_METRIC], process, start=first, stop=last, check=check))
    attempts = Attempts(reading.attempts, attempt)
    shadowed = attempts.shadowed()
    steps: dict[str, list[Points]] = {}
    for one in stepping.series:
        if one.metric == STEP_METRIC:
            assert isinstance(one.points, Points)
            steps.setdefault(one.process, []).append(one.points)
    logged = {name: Points.concat(parts).distinct() for name, parts in steps.items()}
    no_steps = Points.empty()
    wanted = attempts.chosen(one for one in reading.series if one.metric == metric)
    found: list[FullSeries] = []
    for pieces in attempts.lines(wanted):
        check()
        columns = [
            _stepped(piece, logged.get(piece.process, no_steps), shadowed.get(piece.process, ())) for piece in pieces
        ]
        points: Column = type(columns[0][0]).concat(one[0] for one in columns)
        _, column, stepped = columns[0]
        if len(columns) > 1:
            column, stepped = (np.concatenate([one[index] for one in columns]) for index in (1, 2))
        if by_step:
            inside = np.ones(len(points), np.bool_) if start is None and stop is None else stepped.copy()
            if start is not None:
                inside &= column >= start
            if stop is not None:
                inside &= column < stop
            if not inside.all():
                points, column, stepped = points[inside], column[inside], stepped[inside]
            if not stepped.all() or np.any(column[1:] < column[:-1]):
                order = np.lexsort((points.times, column, ~stepped))
                points, column, stepped = points[order], column[order], stepped[order]
        last_piece = pieces[-1]
        about = last_piece.process, attempts.number(last_piece.process), last_piece.kind, last_piece.attributes
        gaps = np.unique(np.concatenate([piece.gaps for piece in pieces]))
        if len(gaps):
            gaps = gaps[np.searchsorted(gaps, points.times.min()) :] if len(points) else NO_GAPS
        found.append(FullSeries(*about, points, column, stepped, last_piece.scope, last_piece.unit, gaps))
    return found


def _stepped(
    series: Series, steps: Points, begins: Sequence[tuple[int, int]]
) -> tuple[Column, NDArray[np.int64], NDArray[np.bool_]]:
    """Points, the step of each, and whether it has one; without what later attempts shadow."""
    points = series.points
    column, stepped = steps_at(steps, points.times)
    if not begins:
        return points, column, stepped
    mask = kept(points.times, column, stepped, begins)
    return points[mask], column[mask], stepped[mask]
