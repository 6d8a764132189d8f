"""The x of points: their step, their time, or another metric's value at the same time in the same process."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.errors import UsageError
from tensormeter.otlp.batch import STEP_METRIC
from tensormeter.otlp.check import Check, no_check
from tensormeter.server.query.points.shadowing import AttemptChoice, Attempts
from tensormeter.server.store import MAX_READ_POINTS, Points, RunRef, Selection, Series, Store
from tensormeter.server.store.models.points import Column

__all__ = ["NO_POSITIONS", "Axis", "Placed", "gap_positions", "read_along"]

_METRIC: Final = "metric:"

NO_POSITIONS: Final[NDArray[np.float64]] = np.empty(0, np.float64)


@dataclass(frozen=True)
class Axis:
    """An x axis.

    Attributes:
        metric: Whose values are x; None: time is.
        relative: Whether time counts from the run's start.
    """

    metric: str | None
    relative: bool = False

    @classmethod
    def parse(cls, text: str) -> "Axis":
        """`step`, `time`, `relative` or `metric:NAME`.

        Raises:
            UsageError: It is none of these.
        """
        if text in ("time", "relative"):
            return cls(None, relative=text == "relative")
        if text == "step":
            return cls(STEP_METRIC)
        if text.startswith(_METRIC) and len(text) > len(_METRIC):
            return cls(text.removeprefix(_METRIC))
        raise UsageError(f"x: expected step, time, relative or metric:NAME, got {text[:80]!r}")

    @property
    def is_time(self) -> bool:
        """Whether x is seconds."""
        return self.metric is None

    @property
    def is_step(self) -> bool:
        """Whether x is the step."""
        return self.metric == STEP_METRIC

    def origin(self, started: int) -> float:
        """Where x is 0, in seconds since the Unix epoch, in a run that started at this time in nanoseconds."""
        return started / 1e9 if self.relative else 0.0

    @staticmethod
    def nanoseconds(x: float | None, origin: float) -> int | None:
        """Time of an x, in nanoseconds since the Unix epoch, if x is time."""
        if x is None:
            return None
        return int(min(max((x + origin) * 1e9, 0.0), 2.0**63 - 1024))

    @staticmethod
    def seconds(times: NDArray[np.int64], origin: float) -> NDArray[np.float64]:
        """The x of times, if x is time."""
        whole = int(origin)  # apart, so that the differences keep their digits
        return (times - whole * 10**9) / 1e9 - (origin - whole)


@dataclass(frozen=True, eq=False)
class Placed:
    """A series, its x (float64, shape (n,), ascending), and the attempt that its process belongs to.

    Attributes:
        gaps: As `gap_positions` gives them.
    """

    series: Series
    x: NDArray[np.float64]
    attempt: int = 1
    gaps: NDArray[np.float64] = field(default_factory=lambda: NO_POSITIONS)


def read_along(
    store: Store,
    ref: RunRef,
    metrics: Sequence[str],
    axis: Axis,
    *,
    process: str | None = None,
    numeric: bool = True,
    start: float | None = None,
    stop: float | None = None,
    after: str | None = None,
    attempt: AttemptChoice = None,
    limit: int = MAX_READ_POINTS,
    gaps: bool = False,
    check: Check = no_check,
    damaged: list[str] | None = None,
) -> tuple[list[Placed], str, bool]:
    """Points of a run with start <= x < stop, by x.

    Args:
        start: In units of x: steps, or seconds (since the epoch, or since the run's start).
        attempt: Which attempts. On the effective line, pieces of one line are one series, under the name of the latest that
            has points in the range.
        limit: Points to look at, at most, those of x and gaps among them.
        gaps: Whether gaps are wanted.
        check: Called for each series; whatever it raises ends the work.
        damaged: As in `Selection`.

    Returns:
        Series that have points, the cursor, and whether they are all that there is (see `Reading`).

    Raises:
        StoreError: As `Store.read`.
    """
    wanted = [*dict.fromkeys([*metrics, *([axis.metric] if axis.metric is not None and numeric else [])])]
    origin = 0.0
    first, last = None, None
    if axis.is_time:
        origin = axis.origin(store.read(ref, Selection([])).started) if axis.relative else 0.0
        first, last = axis.nanoseconds(start, origin), axis.nanoseconds(stop, origin)
    selection = Selection(
        wanted,
        process,
        numeric=numeric,
        start=first,
        stop=last,
        after=after,
        limit=limit,
        gaps=gaps,
        check=check,
        damaged=damaged,
    )
    reading = store.read(ref, selection)
    attempts = Attempts(reading.attempts, attempt)
    series = attempts.chosen(one for one in reading.series if one.metric in metrics)
    along: Sequence[Series] = []
    if axis.metric is not None:
        if numeric and reading.complete:
            along = [one for one in reading.series if one.metric == axis.metric]
        elif series:
            along = _along(
                store, ref, axis.metric, series, process=process, limit=limit, check=check
            )  # their x may have come before them
    cut = attempts.shadowed()
    shadowed = [one for one in series if one.process in cut]
    if shadowed:
        steps = along
        if axis.metric != STEP_METRIC:
            steps = _along(store, ref, STEP_METRIC, shadowed, process=process, limit=limit, check=check)
        series = attempts.effective(series, steps)
    placed = []
    for pieces in attempts.lines(series):
        found = []
        for one in pieces:
            check()
            if axis.metric is not None:
                found.append(_cut(_join(one, along), start, stop))
            else:
                whole = Placed(one, axis.seconds(one.points.times, origin))
                found.append(whole if after is None else _cut(whole, start, stop))
        found = [_with_gaps(piece) for piece in found if len(piece.x)]
        if found:
            line = _line(found)
            placed.append(replace(line, attempt=attempts.number(line.series.process)))
    return placed, reading.cursor, reading.complete


def _along(
    store: Store,
    ref: RunRef,
    metric: str,
    series: Sequence[Series],
    *,
    process: str | None,
    limit: int,
    check: Check,
) -> Sequence[Series]:
    """A metric at the times at which these series have points."""
    first = min(int(one.points.times[0]) for one in series)
    last = max(int(one.points.times[-1]) for one in series) + 1
    return store.read(ref, Selection([metric], process, start=first, stop=last, limit=limit, check=check)).series


def _line(pieces: Sequence[Placed]) -> Placed:
    """One line out of its pieces."""
    if len(pieces) == 1:
        return pieces[0]
    x = np.concatenate([piece.x for piece in pieces])
    points: Column = type(pieces[0].series.points).concat([piece.series.points for piece in pieces])
    if np.any(x[1:] < x[:-1]):
        order = np.argsort(x, kind="stable")
        x, points = x[order], points[order]
    return Placed(replace(pieces[-1].series, points=points), x, gaps=np.concatenate([piece.gaps for piece in pieces]))


def gap_positions(gaps: NDArray[np.int64], times: NDArray[np.int64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where a line is interrupted: the x of the last point before each gap, ascending; gaps before all points are left out.

    A line has no stroke between neighbouring points a and b if a.x <= position < b.x, so that it does not matter which
    points of it are drawn.
    """
    if not len(gaps):
        return NO_POSITIONS
    order = np.argsort(times, kind="stable")
    index = np.searchsorted(times[order], gaps, "right") - 1
    return np.unique(x[order[index[index >= 0]]])


def _with_gaps(placed: Placed) -> Placed:
    gaps = placed.series.gaps
    return replace(placed, gaps=gap_positions(gaps, placed.series.points.times, placed.x)) if len(gaps) else placed


def _join(series: Series, along: Sequence[Series]) -> Placed:
    """Points whose x is known, by x; points of equal x by time."""
    candidates = [one for one in along if one.process == series.process]
    if len(candidates) > 1:
        equal = [one for one in candidates if one.attributes == series.attributes]
        candidates = equal or candidates
    points: Column = series.points
    x = np.full(len(points), np.nan)
    for one in candidates:
        assert isinstance(one.points, Points)
        if np.array_equal(one.points.times, points.times):
            x = one.points.floats()
            break
        index = np.minimum(np.searchsorted(one.points.times, points.times), len(one.points) - 1)
        found = one.points.times[index] == points.times
        x = np.where(found & np.isnan(x), one.points.floats()[index], x)
    known = ~np.isnan(x)
    if not known.all():
        points, x = points[known], x[known]
    if np.any(x[1:] < x[:-1]):
        order = np.argsort(x, kind="stable")
        points, x = points[order], x[order]
    return Placed(replace(series, points=points), x)


def _cut(placed: Placed, start: float | None, stop: float | None) -> Placed:
    first = 0 if start is None else int(np.searchsorted(placed.x, start))
    last = len(placed.x) if stop is None else int(np.searchsorted(placed.x, stop))
    if first == 0 and last == len(placed.x):
        return placed
    part = slice(first, max(first, last))
    return Placed(replace(placed.series, points=placed.series.points[part]), placed.x[part])
