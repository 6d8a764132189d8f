"""X values from another metric: the value that was logged with the point, or else the last one at or before the point's step."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.query.points.lines import Line, line_of, values_at
from tensormeter.server.store import Points, Series
from tensormeter.server.store.models.points import steps_at

__all__ = ["MetricAxis"]


class MetricAxis:
    """The values of one metric as an x axis for the series of the same processes.

    A point gets the value that its process logged at the same time. If there is none, it gets the last value at or before its
    step, which its process logged. Points without either get no x value.
    """

    def __init__(self, x_series: Iterable[Series], steps: Iterable[Series] = ()) -> None:
        """
        Args:
            x_series: Series of the metric.
            steps: Series of `tensormeter.step`. Without them, points get only values of the same time.
        """
        self._series: dict[str, list[Series]] = {}
        for series in x_series:
            self._series.setdefault(series.process, []).append(series)
        logged: dict[str, list[Points]] = {}
        for series in steps:
            assert isinstance(series.points, Points)
            logged.setdefault(series.process, []).append(series.points)
        self._steps: Mapping[str, Points] = {key: Points.concat(parts).distinct() for key, parts in logged.items()}
        self._sorted: dict[tuple[int, ...], tuple[NDArray[np.int64], NDArray[np.float64]]] = {}

    def line(self, series: Series) -> Line:
        """Return the points of a series that have an x value, in order of x."""
        return line_of(series, self._x(series))

    def misses(self, series: Series) -> NDArray[np.bool_]:
        """Return which points of a series have no x value."""
        return np.isnan(self._x(series))

    def _x(self, series: Series) -> NDArray[np.float64]:
        candidates = self._candidates(series)
        times = series.points.times
        x = values_at(candidates, times)
        steps = self._steps.get(series.process)
        missing = np.isnan(x)
        if steps is None or not candidates or not missing.any():
            return x
        x_steps, values = self._in_order_of_steps(candidates, steps)
        if not len(x_steps):
            return x
        logged, stepped = steps_at(steps, times[missing])
        index = np.searchsorted(x_steps, logged, "right") - 1
        x = x.copy()
        x[missing] = np.where(stepped & (index >= 0), values[index], np.nan)
        return x

    def _candidates(self, series: Series) -> Sequence[Series]:
        candidates = self._series.get(series.process, [])
        if len(candidates) > 1:
            equal = [candidate for candidate in candidates if candidate.attributes == series.attributes]
            candidates = equal or candidates
        return candidates

    def _in_order_of_steps(
        self, candidates: Sequence[Series], steps: Points
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the steps and values of the x metric, in order of step and time, without NaN."""
        key = tuple(map(id, candidates))
        if key not in self._sorted:
            points = Points.concat([series.points for series in candidates if isinstance(series.points, Points)])
            values = points.floats()
            logged, stepped = steps_at(steps, points.times)
            present = stepped & ~np.isnan(values)
            logged, values, times = logged[present], values[present], points.times[present]
            if np.any(logged[1:] < logged[:-1]) or np.any(times[1:] < times[:-1]):
                order = np.lexsort((times, logged))
                logged, values = logged[order], values[order]
            self._sorted[key] = logged, values
        return self._sorted[key]
