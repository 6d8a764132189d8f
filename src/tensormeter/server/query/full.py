"""Every point of a metric, exactly as it was logged, with its step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.server.store import MAX_READ_POINTS, Points, RunRef, Store
from tensormeter.server.store.reader import steps_at

__all__ = ["FullSeries", "read_full"]


@dataclass(frozen=True, eq=False)
class FullSeries:
    """Points of one series, in the order asked for.

    Attributes:
        points: n points with distinct times.
        steps: int64, shape (n,): the step logged at each point's time, where `stepped`; elsewhere 0.
        stepped: bool, shape (n,).
    """

    process: str
    kind: str
    attributes: Mapping[str, Any]
    points: Points
    steps: NDArray[np.int64] = field(repr=False)
    stepped: NDArray[np.bool_] = field(repr=False)


def read_full(
    store: Store,
    ref: RunRef,
    metric: str,
    *,
    by_step: bool = True,
    process: str | None = None,
    start: int | None = None,
    stop: int | None = None,
    limit: int = MAX_READ_POINTS,
) -> list[FullSeries]:
    """Every point of a metric, one entry a series.

    Args:
        by_step: Order by (step, time), points without a step last; else by time.
        start: Only points with step (or time, in nanoseconds) >= start.
        stop: Only points with step (or time) < stop. A point without a step is in no range of steps.
        limit: Points to look at, at most, the steps among them.

    Raises:
        StoreError: As `Store.read`.
    """
    first, last = (None, None) if by_step else (start, stop)
    reading = store.read(ref, [metric, STEP_METRIC], process=process, start=first, stop=last, limit=limit)
    steps: dict[str, list[Points]] = {}
    for one in reading.series:
        if one.metric == STEP_METRIC:
            assert isinstance(one.points, Points)
            steps.setdefault(one.process, []).append(one.points)
    found: list[FullSeries] = []
    for one in reading.series:
        points = one.points
        if one.metric != metric or not isinstance(points, Points):
            continue
        column, stepped = steps_at(Points.concat(steps.get(one.process, ())).distinct(), points.times)
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
        found.append(FullSeries(one.process, one.kind.name, one.attributes, points, column, stepped))
    return found
