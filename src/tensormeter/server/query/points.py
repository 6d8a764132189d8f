"""Many series of many runs, sampled: what a page of charts asks for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.server.query.attempts import AttemptChoice
from tensormeter.server.query.axis import Axis, Placed, read_along
from tensormeter.server.query.sampling import sample
from tensormeter.server.store import MAX_READ_POINTS, Points, RunRef, Store, TooManyPointsError

__all__ = ["PointsQuery", "PointsResult", "SampledSeries", "query_points"]

MAX_SERIES: Final = 2000


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


@dataclass(frozen=True, eq=False)
class SampledSeries:
    """One series. `total` is how many points it has in the range; `x` and `y` are float64 of equal length."""

    run: str
    process: str
    attempt: int
    metric: str
    kind: str
    attributes: Mapping[str, Any]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    total: int


@dataclass(frozen=True, eq=False)
class PointsResult:
    """`complete` is False if only what arrived after the query's cursor is there."""

    series: Sequence[SampledSeries]
    cursor: str
    complete: bool


def query_points(store: Store, query: PointsQuery) -> PointsResult:
    """Read, cut, sample.

    Raises:
        TooManyPointsError: More series, or more points to look at, than one request may have.
        StoreError: As `Store.read`.
    """
    result = _query(store, query, query.after)
    if query.after is not None and result is None:
        # Some of it is not known to be new any more: then everything, so that what is there is consistent.
        result = _query(store, query, None)
    assert result is not None
    return result


def _query(store: Store, query: PointsQuery, after: str | None) -> PointsResult | None:
    found: list[SampledSeries] = []
    budget = MAX_READ_POINTS
    # Of the first read: what comes meanwhile is seen twice rather than never.
    cursor: str | None = None
    complete = after is None
    for ref in query.runs:
        placed, seen, all_there = read_along(
            store,
            ref,
            query.metrics,
            query.axis,
            process=query.process,
            start=query.start,
            stop=query.stop,
            after=after,
            attempt=query.attempt,
            limit=budget,
        )
        if all_there and after is not None:
            return None
        cursor = cursor or seen
        budget -= sum(len(one.x) for one in placed)
        found += _sampled(ref, placed, query)
        if len(found) > MAX_SERIES:
            raise TooManyPointsError(
                f"more than {MAX_SERIES} series; ask for fewer runs or metrics, or for one process with `process`"
            )
    return PointsResult(found, cursor or store.changes(None).cursor, complete)


def _sampled(ref: RunRef, placed: Sequence[Placed], query: PointsQuery) -> Iterator[SampledSeries]:
    for one in placed:
        series = one.series
        if query.attributes and not query.attributes.items() <= dict(series.attributes).items():
            continue
        assert isinstance(series.points, Points)
        values = series.points.floats()
        kept = sample(values, query.max_points)
        yield SampledSeries(
            ref.run_id,
            series.process,
            one.attempt,
            series.metric,
            series.kind.name,
            series.attributes,
            one.x[kept],
            values[kept],
            len(values),
        )
