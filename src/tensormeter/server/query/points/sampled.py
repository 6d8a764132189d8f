"""Points of one or more runs, sampled for charts."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.query.points.downsampling import blocks_needed, sample
from tensormeter.server.query.points.lines import LineReading
from tensormeter.server.query.points.reader import RunReader
from tensormeter.server.query.points.request import RunQuery
from tensormeter.server.query.points.shadowing import Attempts
from tensormeter.server.store import (
    MAX_READ_POINTS,
    Kind,
    Points,
    RunRef,
    Selection,
    Series,
    SeriesRollup,
    Store,
    TooManyPointsError,
    TooManySeriesError,
)
from tensormeter.server.store.models.canonical_json import canonical_json
from tensormeter.server.store.models.errors import DamagedError

__all__ = ["PointsResult", "SampledSeries", "query_points"]

MAX_SERIES: Final = 2000

WHOLE_POINTS: Final = 1_000_000
"""Maximum number of points to read without trying rollups first. Reading them takes about 70 ms."""

MOST_LOOKED_AT: Final = 150_000_000
"""Maximum number of points, including x values, to read for one response when processes are read one at a time.

The request's CPU time limit may stop the query earlier.
"""


@dataclass(frozen=True, eq=False)
class SampledSeries:
    """A sampled series.

    Attributes:
        x: X values of the points, float64, shape (n,).
        y: Values of the points, float64, shape (n,).
        total: Number of points in the range before sampling.
        gaps: Positions of gaps in the line; see `gap_positions`.
        child: ID of the forked run that the series belongs to, if it is part of the curve of the run's parent.
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
    child: str = ""


@dataclass(frozen=True, eq=False)
class PointsResult:
    """The result of `query_points`.

    Attributes:
        series: Sampled series of all runs.
        cursor: Cursor for a later query.
        complete: Whether `series` contains all points, rather than only those that arrived after the query's cursor.
        damaged: Messages about damaged data that was omitted.
    """

    series: Sequence[SampledSeries]
    cursor: str
    complete: bool
    damaged: Sequence[str] = ()


class _RunResult(NamedTuple):
    """Sampled series of one run, the cursor, whether all points were read, and the number of points loaded."""

    series: list[SampledSeries]
    cursor: str
    complete: bool
    loaded: int


def query_points(
    store: Store, runs: Sequence[RunRef], query: RunQuery, limit: int | None = None, check: Check = no_check
) -> PointsResult:
    """Read and sample the points of several runs.

    Args:
        store: Store to read from.
        runs: Runs to read.
        query: Points to read from each run.
        limit: Maximum number of points to read; None for the maximum per request.
        check: Function called for each series; it can raise an exception to stop the query.

    Raises:
        TooManyPointsError: The query needs more series or points than one request may read.
        DamagedError: All requested data is damaged. If only part of it is damaged, that part is omitted.
        StoreError: See `Store.read`.
    """
    limit = MAX_READ_POINTS if limit is None else min(limit, MAX_READ_POINTS)
    result = _query_runs(store, runs, query, limit, check)
    if result is None:
        # The new points of at least one run cannot be identified, so read all points of all runs for consistency.
        result = _query_runs(store, runs, replace(query, after=None), limit, check)
    assert result is not None
    return result


def _query_runs(
    store: Store, runs: Sequence[RunRef], query: RunQuery, budget: int, check: Check
) -> PointsResult | None:
    """Read all runs. Return None if a run's points after the query's cursor cannot be read separately."""
    series: list[SampledSeries] = []
    # All reads end at the first one's cursor, so that a chain of queries returns each point once.
    cursor: str | None = None
    damaged: list[str] = []
    for ref in runs:
        try:
            bounded = query if cursor is None else replace(query, upto=cursor)
            result = _query_run(store, ref, bounded, budget, check=check, damaged=damaged)
        except DamagedError as error:
            if len(runs) == 1:
                raise
            damaged.append(str(error))
            continue
        except TooManyPointsError:
            if query.after is None:
                raise
            return None
        if result.complete and query.after is not None:
            return None
        cursor = cursor or result.cursor
        budget -= result.loaded
        series += result.series
        if len(series) > MAX_SERIES:
            raise TooManySeriesError(
                f"more than {MAX_SERIES} series; request fewer runs or metrics, or a single process with `process`"
            )
    if damaged and not series:
        raise DamagedError(damaged[0], named=True)
    return PointsResult(series, cursor or store.changes(None).cursor, query.after is None, damaged)


def _query_run(
    store: Store, ref: RunRef, query: RunQuery, budget: int, *, check: Check, damaged: list[str]
) -> _RunResult:
    reader = RunReader(store, ref, query, check, damaged)
    if query.after is not None or not query.max_points:
        return _sample_lines(ref, reader.lines(budget, gaps=True), query, check)
    try:
        return _sample_lines(ref, reader.lines(min(budget, WHOLE_POINTS), gaps=True), query, check)
    except TooManyPointsError:
        try:
            return _sample_rollups(ref, reader, query, budget, check) or _sample_lines(
                ref, reader.lines(budget, gaps=True), query, check
            )
        except TooManyPointsError:
            if query.process is not None or budget < MAX_READ_POINTS:
                raise
            series, cursor = _query_each_process(store, ref, query, check, damaged)
            return _RunResult(series, cursor, complete=True, loaded=budget)


def _query_each_process(
    store: Store, ref: RunRef, query: RunQuery, check: Check, damaged: list[str]
) -> tuple[list[SampledSeries], str]:
    """Read a run that has too many points for memory, sampling each process before reading the next.

    Raises:
        TooManyPointsError: One process has too many points, or all processes together have more than `MOST_LOOKED_AT`.
    """
    run = store.read(ref, Selection([], upto=query.upto))
    joined: list[SampledSeries] = []
    budget = MOST_LOOKED_AT
    ids = (summary.process for summary in store.processes(ref))
    for processes in Attempts(run.attempts, query.attempt).group_processes(ids):
        lines: dict[str, list[SampledSeries]] = defaultdict(list)
        for process in processes:
            limit = max(min(budget, MAX_READ_POINTS), 0)
            of_process = replace(query, process=process, upto=run.cursor)
            result = _query_run(store, ref, of_process, limit, check=check, damaged=damaged)
            budget -= 2 * result.loaded
            for series in result.series:
                key = [series.metric, str(series.kind), series.scope, series.unit, series.attributes]
                lines[canonical_json(key)].append(series)
        joined += (_join(pieces, query.max_points) for pieces in lines.values())
    return joined, run.cursor


def _join(pieces: Sequence[SampledSeries], max_points: int) -> SampledSeries:
    """Join pieces of a line, given in attempt order, and sample the result."""
    if len(pieces) == 1:
        return pieces[0]
    x, y = np.concatenate([piece.x for piece in pieces]), np.concatenate([piece.y for piece in pieces])
    order = np.argsort(x, kind="stable")
    index = order[sample(y[order], max_points)]
    gaps = np.unique(np.concatenate([piece.gaps for piece in pieces]))
    return replace(pieces[-1], x=x[index], y=y[index], total=sum(piece.total for piece in pieces), gaps=gaps)


def _sample_lines(ref: RunRef, reading: LineReading, query: RunQuery, check: Check) -> _RunResult:
    sampled = []
    for line in reading.lines:
        check()
        if not query.matches(line.series):
            continue
        assert isinstance(line.series.points, Points)
        values = line.series.points.floats()
        index = sample(values, query.max_points)
        columns = line.x[index], values[index], line.gaps
        sampled.append(_sampled(ref, line.series, line.attempt, columns, len(values)))
    return _RunResult(sampled, reading.cursor, reading.complete, reading.points)


def _sample_rollups(ref: RunRef, reader: RunReader, query: RunQuery, budget: int, check: Check) -> _RunResult | None:
    """Read and sample rollups. Return None if rollups cannot answer the query."""
    rollups = reader.rollups(blocks_needed(query.max_points), budget, gaps=True)
    lines = None if rollups is None else rollups.lines(query.max_points, check)
    if rollups is None or lines is None:
        return None
    sampled = [
        _sampled(ref, line.series, line.attempt, (line.x, line.y, line.gaps), line.total)
        for line in lines
        if query.matches(line.series)
    ]
    return _RunResult(sampled, rollups.cursor, complete=True, loaded=sum(line.loaded for line in lines))


def _sampled(
    ref: RunRef,
    series: Series | SeriesRollup,
    attempt: int,
    columns: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    total: int,
) -> SampledSeries:
    x, y, gaps = columns
    return SampledSeries(
        ref.run_id,
        series.process,
        attempt,
        series.metric,
        series.kind,
        series.scope,
        series.unit,
        series.attributes,
        x,
        y,
        total,
        np.unique(gaps),
    )
