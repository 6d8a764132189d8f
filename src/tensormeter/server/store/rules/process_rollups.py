"""The points of one process with their steps, as a scan returns them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store.models.point_range import PointRange, Track
from tensormeter.server.store.models.points import Points, steps_at
from tensormeter.server.store.models.series import ProcessRollups, Series, SeriesRollup

__all__ = ["join_steps"]


def join_steps(process: str, series: Sequence[Series], steps: Sequence[Series], window: PointRange) -> ProcessRollups:
    """Return the points in the window, with their steps.

    Args:
        process: ID of the process.
        series: Series of the process, with the points in the window's time range.
        steps: Numeric series of `tensormeter.step` of the process, over the same time range. They may be missing if the
            window does not need steps.
        window: Range of points to select.
    """
    points_of_steps: Points | None = None
    if window.by_step or any(window.needs_steps((process, piece.metric)) for piece in series):
        if len(steps) > 1:
            return ProcessRollups(process, None)
        if steps:
            (step_series,) = steps
            assert isinstance(step_series.points, Points)
            points_of_steps = step_series.points
            if not points_of_steps.integers.all():
                return ProcessRollups(process, None)
        elif window.by_step:
            return ProcessRollups(process, [])
    rollups = []
    for piece in series:
        assert isinstance(piece.points, Points)
        points, stepped = _select((process, piece.metric), piece.points, points_of_steps, window)
        if len(points):
            identity = piece.process, piece.metric, piece.kind, piece.attributes
            rollups.append(SeriesRollup(*identity, points, stepped, None, piece.scope, piece.unit))
    return ProcessRollups(process, rollups)


def _select(track: Track, points: Points, steps: Points | None, window: PointRange) -> tuple[Points, NDArray[np.int64]]:
    """Return the points in the window and their steps, which are 0 if they are not needed."""
    if steps is None:
        unstepped = np.zeros(len(points), np.int64)
        mask = replace(window, begins={}).mask(track, points.times, unstepped, unstepped.astype(np.bool_))
        return (points, unstepped) if mask.all() else (points[mask], unstepped[mask])
    logged, stepped = steps_at(steps, points.times)
    mask = window.mask(track, points.times, logged, stepped)
    return (points, logged) if mask.all() else (points[mask], logged[mask])
