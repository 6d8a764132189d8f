"""Many series of many runs, sampled: what a page of charts asks for."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.query.points.axis import Axis, Placed, read_along
from tensormeter.server.query.points.downsampling import sample
from tensormeter.server.query.points.rollup_lines import read_thinned
from tensormeter.server.query.points.shadowing import AttemptChoice, Attempts
from tensormeter.server.query.points.variant import ANY, Choice
from tensormeter.server.store import (
    MAX_READ_POINTS,
    Kind,
    Points,
    RunRef,
    Selection,
    Series,
    Store,
    Thinned,
    TooManyPointsError,
    TooManySeriesError,
)
from tensormeter.server.store.models.canonical_json import canonical_json
from tensormeter.server.store.models.errors import DamagedError

__all__ = ["PointsQuery", "PointsResult", "SampledSeries", "query_points"]

MAX_SERIES: Final = 2000

WHOLE_POINTS: Final = 1_000_000
"""Points of a run that are all read, in some 70 ms; beyond that samples are asked for first."""

MOST_LOOKED_AT: Final = 150_000_000
"""Points that are looked at for one answer, those of x among them, where not all are held. A request's processor
time may end the work earlier."""


@dataclass(frozen=True)
class PointsQuery:
    """What is asked for. `start` and `stop` are in units of x; `max_points` are those of one series, 0: all."""

    runs: Sequence[RunRef]
    metrics: Sequence[str]
    axis: Axis
    start: float | None = None
    stop: float | None = None
    max_points: int = 1000
    process: str | None = None
    attributes: Mapping[str, Any] | None = None
    after: str | None = None
    attempt: AttemptChoice = None
    variant: Choice = ANY


@dataclass(frozen=True, eq=False)
class SampledSeries:
    """One series.

    Attributes:
        x: float64; so is `y`, of equal length.
        total: How many points it has in the range.
        gaps: As `gap_positions` gives them.
    """

    run: str
    process: str
    attempt: int
    metric: str
    kind: Kind
    scope: str
    unit: str
    attributes: Mapping[str, Any]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    total: int
    gaps: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PointsResult:
    """`complete` is False if only what arrived after the query's cursor is there; `damaged` says what is left out, and why."""

    series: Sequence[SampledSeries]
    cursor: str
    complete: bool
    damaged: Sequence[str] = ()


def query_points(store: Store, query: PointsQuery, most: int | None = None, check: Check = no_check) -> PointsResult:
    """Read, cut, sample.

    Args:
        store: From where.
        query: What.
        most: Points that may be read; None: as many as one request may have.
        check: Called for each series; whatever it raises ends the work.

    Raises:
        TooManyPointsError: More series, or more points to look at, than one request may have.
        DamagedError: All that was asked for is damaged. Where something is not, the rest is left out.
        StoreError: As `Store.read`.
    """
    most = MAX_READ_POINTS if most is None else min(most, MAX_READ_POINTS)
    result = _query(store, query, query.after, most, check)
    if query.after is not None and result is None:
        # Some of it is not known to be new any more: then everything, so that what is there is consistent.
        result = _query(store, query, None, most, check)
    assert result is not None
    return result


def _query(store: Store, query: PointsQuery, after: str | None, budget: int, check: Check) -> PointsResult | None:
    found: list[SampledSeries] = []
    # Of the first read: what comes meanwhile is seen twice rather than never.
    cursor: str | None = None
    complete = after is None
    damaged: list[str] = []
    for ref in query.runs:
        try:
            series, seen, all_there, held = _read(store, ref, query, after, budget, check=check, damaged=damaged)
        except DamagedError as error:
            if len(query.runs) == 1:
                raise
            damaged.append(str(error))
            continue
        except TooManyPointsError:
            if after is None:
                raise
            return None
        if all_there and after is not None:
            return None
        cursor = cursor or seen
        budget -= held
        found += series
        if len(found) > MAX_SERIES:
            raise TooManySeriesError(
                f"more than {MAX_SERIES} series; ask for fewer runs or metrics, or for one process with `process`"
            )
    if damaged and not found:
        raise DamagedError(damaged[0], named=True)
    return PointsResult(found, cursor or store.changes(None).cursor, complete, damaged)


def _read(
    store: Store,
    ref: RunRef,
    query: PointsQuery,
    after: str | None,
    budget: int,
    *,
    check: Check,
    damaged: list[str],
) -> tuple[list[SampledSeries], str, bool, int]:
    """Series of one run, the cursor, whether they are all that there is, and how many points were held for them."""
    read = partial(
        read_along,
        store,
        ref,
        query.metrics,
        query.axis,
        process=query.process,
        start=query.start,
        stop=query.stop,
        attempt=query.attempt,
        gaps=True,
        check=check,
        damaged=damaged,
    )
    if after is not None or not query.max_points:
        placed, cursor, complete = read(after=after, limit=budget)
        return _sampled(ref, placed, query, check), cursor, complete, sum(len(one.x) for one in placed)
    try:
        placed, cursor, _ = read(limit=min(budget, WHOLE_POINTS))
    except TooManyPointsError:
        try:
            thinned = read_thinned(
                store,
                ref,
                query.metrics,
                query.axis,
                process=query.process,
                start=query.start,
                stop=query.stop,
                attempt=query.attempt,
                max_points=query.max_points,
                limit=budget,
                check=check,
                damaged=damaged,
            )
            if thinned is not None:
                lines, cursor = thinned
                drawn = (_series(ref, one.series, one.attempt, (one.x, one.y, one.gaps), one.total) for one in lines)
                return [one for one in drawn if _is_wanted(one, query)], cursor, True, sum(one.held for one in lines)
            placed, cursor, _ = read(limit=budget)
        except TooManyPointsError:
            if query.process is not None or budget < MAX_READ_POINTS:
                raise
            return *_one_by_one(store, ref, query, check, damaged), True, budget
    return _sampled(ref, placed, query, check), cursor, True, sum(len(one.x) for one in placed)


def _one_by_one(
    store: Store, ref: RunRef, query: PointsQuery, check: Check, damaged: list[str]
) -> tuple[list[SampledSeries], str]:
    """Series of a run with too many points to hold them all: each process is sampled before the next is read.

    Raises:
        TooManyPointsError: One process has too many, or all of them together have more than `MOST_LOOKED_AT`.
    """
    about = store.read(ref, Selection([]))
    found: list[SampledSeries] = []
    left = MOST_LOOKED_AT
    for processes in Attempts(about.attempts, query.attempt).ranks(one.process for one in store.processes(ref)):
        lines: dict[str, list[SampledSeries]] = defaultdict(list)
        for process in processes:
            alone = replace(query, process=process)
            most = max(min(left, MAX_READ_POINTS), 0)
            series, _, _, held = _read(store, ref, alone, None, most, check=check, damaged=damaged)
            left -= 2 * held
            for one in series:
                lines[canonical_json([one.metric, str(one.kind), one.scope, one.unit, one.attributes])].append(one)
        found += (_joined(pieces, query.max_points) for pieces in lines.values())
    return found, about.cursor


def _joined(pieces: Sequence[SampledSeries], max_points: int) -> SampledSeries:
    """One line out of its pieces, in the order of attempts."""
    if len(pieces) == 1:
        return pieces[0]
    x, y = np.concatenate([one.x for one in pieces]), np.concatenate([one.y for one in pieces])
    order = np.argsort(x, kind="stable")
    kept = order[sample(y[order], max_points)]
    gaps = np.unique(np.concatenate([one.gaps for one in pieces]))
    return replace(pieces[-1], x=x[kept], y=y[kept], total=sum(one.total for one in pieces), gaps=gaps)


def _sampled(ref: RunRef, placed: Sequence[Placed], query: PointsQuery, check: Check) -> list[SampledSeries]:
    found = []
    for one in placed:
        check()
        assert isinstance(one.series.points, Points)
        values = one.series.points.floats()
        kept = sample(values, query.max_points)
        series = _series(ref, one.series, one.attempt, (one.x[kept], values[kept], one.gaps), len(values))
        if _is_wanted(series, query):
            found.append(series)
    return found


def _is_wanted(series: SampledSeries, query: PointsQuery) -> bool:
    if not query.variant.fits(series):
        return False
    return not query.attributes or query.attributes.items() <= dict(series.attributes).items()


def _series(
    ref: RunRef,
    series: Series | Thinned,
    attempt: int,
    columns: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    total: int,
) -> SampledSeries:
    x, y, gaps = columns
    about = (
        ref.run_id,
        series.process,
        attempt,
        series.metric,
        series.kind,
        series.scope,
        series.unit,
        series.attributes,
    )
    return SampledSeries(*about, x, y, total, np.unique(gaps))
