"""Raw points: every point of a series exactly as logged, with its step."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.store import Column, Kind, Points, Series
from tensormeter.server.store.models.point_range import Track, kept
from tensormeter.server.store.models.points import steps_at
from tensormeter.server.store.models.series import NO_GAPS

__all__ = ["RawSeries", "StepJoiner"]

_SHORT: Final = 1000
"""Maximum number of points of a series whose steps are looked up together with those of other series."""

_NO_STEPS: Final = Points.empty()


@dataclass(frozen=True, eq=False)
class RawSeries:
    """The points of one series exactly as logged.

    Attributes:
        points: The n points of the series. Points of the same process have distinct times.
        steps: int64, shape (n,): step logged at the time of each point; 0 where `stepped` is False.
        stepped: bool, shape (n,): whether a step was logged at the time of each point.
        gaps: int64, ascending: times of the gaps after the first point, or after the start of the time range.
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
    metric: str = ""

    def by_step(self, start: float | None, stop: float | None) -> "RawSeries":
        """Keep points with start <= step < stop, ordered by step and time.

        Points without a step come last, or are removed if there is a `start` or `stop`.
        """
        points, steps, stepped, gaps = self.points, self.steps, self.stepped, self.gaps
        if len(points) < 2 and start is None and stop is None:
            return self
        if start is not None or stop is not None:
            mask = stepped.copy()
            if start is not None:
                mask &= steps >= start
            if stop is not None:
                mask &= steps < stop
            if not mask.all():
                points, steps, stepped = points[mask], steps[mask], stepped[mask]
                gaps = _trim_gaps(gaps, points)
        if not stepped.all() or np.any(steps[1:] < steps[:-1]):
            order = np.lexsort((points.times, steps, ~stepped))
            points, steps, stepped = points[order], steps[order], stepped[order]
        return replace(self, points=points, steps=steps, stepped=stepped, gaps=gaps)


class StepJoiner:
    """A lookup of the steps of many series."""

    def __init__(
        self,
        series: Sequence[Series],
        steps: Mapping[str, Points],
        shadowed: Mapping[Track, Sequence[tuple[int, int]]],
        start: int | None = None,
    ) -> None:
        """Look up the steps of short series, all series of a process at once.

        Args:
            series: Series to be joined.
            steps: Points of `tensormeter.step`, by process.
            shadowed: Starts of later attempts, by process and metric; see `Attempts.shadowed`.
            start: Start of the time range of the series, in nanoseconds since the Unix epoch; None for no bound.
        """
        self._start = start
        self._steps = steps
        self._shadowed = shadowed
        self._known: dict[int, tuple[NDArray[np.int64], NDArray[np.bool_]]] = {}
        short: dict[str, list[Series]] = defaultdict(list)
        for piece in series:
            if len(piece.points) <= _SHORT:
                short[piece.process].append(piece)
        for process, pieces in short.items():
            times = np.concatenate([piece.points.times for piece in pieces])
            logged, stepped = steps_at(steps.get(process, _NO_STEPS), times)
            start = 0
            for piece in pieces:
                part = slice(start, start + len(piece.points))
                self._known[id(piece)] = logged[part], stepped[part]
                start = part.stop

    def join(self, pieces: Sequence[Series], attempt: int) -> RawSeries:
        """Join pieces from several attempts, without shadowed points. The result has the identity of the last piece.

        Args:
            pieces: Pieces of one line, in attempt order.
            attempt: Attempt of the last piece.
        """
        columns = [self._add_steps(piece) for piece in pieces]
        points, logged, stepped = columns[0]
        if len(columns) > 1:
            points = type(points).concat(column[0] for column in columns)
            logged, stepped = (np.concatenate([column[index] for column in columns]) for index in (1, 2))
        last, gaps = pieces[-1], NO_GAPS
        if any(len(piece.gaps) for piece in pieces):
            gaps = np.unique(np.concatenate([piece.gaps for piece in pieces]))
            if self._start is None:  # a range may begin between a point and a gap
                gaps = _trim_gaps(gaps, points)
        return RawSeries(
            last.process, attempt, last.kind, last.attributes, points, logged, stepped, last.scope, last.unit, gaps,
            last.metric,
        )  # fmt: skip

    def _add_steps(self, series: Series) -> tuple[Column, NDArray[np.int64], NDArray[np.bool_]]:
        """Return the points that no later attempt shadows, their steps, and whether each point has a step."""
        points = series.points
        known = self._known.get(id(series))
        logged, stepped = steps_at(self._steps.get(series.process, _NO_STEPS), points.times) if known is None else known
        begins = self._shadowed.get((series.process, series.metric), ())
        if not begins:
            return points, logged, stepped
        mask = kept(points.times, logged, stepped, begins)
        return points[mask], logged[mask], stepped[mask]


def _trim_gaps(gaps: NDArray[np.int64], points: Column) -> NDArray[np.int64]:
    """Remove gaps before the first point."""
    if not len(gaps):
        return gaps
    return gaps[np.searchsorted(gaps, points.times.min()) :] if len(points) else NO_GAPS
