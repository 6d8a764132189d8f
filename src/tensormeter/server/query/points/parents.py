"""The curves of the runs from which other runs were forked, up to the step of the fork."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.query.points.request import RunQuery
from tensormeter.server.query.points.sampled import MAX_SERIES, PointsResult, query_points
from tensormeter.server.store import MAX_READ_POINTS, NotFoundError, RunRef, Store, TooManySeriesError

__all__ = ["query_with_parents"]

_MAX_GENERATIONS: Final = 10


class _Ancestor(NamedTuple):
    """A run, the run that continues it, and the first step that does not belong to the part that is continued."""

    ref: RunRef
    child: str
    stop: float


def query_with_parents(
    store: Store, runs: Sequence[RunRef], query: RunQuery, limit: int | None = None, check: Check = no_check
) -> PointsResult:
    """Read and sample points like `query_points`, and add the series of the parents of forked runs.

    A parent's series contains only the steps up to the fork. `SampledSeries.child` is the ID of the forked run. A parent may
    have been forked itself; its parent's series belong to the same run. Parents that do not exist are omitted.

    Args:
        store: Store to read from.
        runs: Runs to read.
        query: Points to read from each run, by step.
        limit: See `query_points`.
        check: See `query_points`.

    Raises:
        TooManyPointsError, TooManySeriesError: See `query_points`. The limits apply to all runs together.
    """
    result = query_points(store, runs, query, limit, check)
    series, damaged = [*result.series], [*result.damaged]
    room = (MAX_READ_POINTS if limit is None else limit) - sum(len(piece.x) for piece in series)
    for ref in runs:
        for ancestor in _ancestors(store, ref):
            check()
            part = _read(store, ancestor, query, result.cursor, max(room, 0), check)
            if part is None:
                continue
            if query.after is not None and part.complete != result.complete:  # one contains all points, so both must
                return query_with_parents(store, runs, replace(query, after=None), limit, check)
            series += (replace(piece, child=ancestor.child) for piece in part.series)
            damaged += part.damaged
            room -= sum(len(piece.x) for piece in part.series)
            if len(series) > MAX_SERIES:
                raise TooManySeriesError(f"more than {MAX_SERIES} series; request fewer runs or metrics, or no parents")
    return replace(result, series=series, damaged=[*dict.fromkeys(damaged)])


def _read(
    store: Store, ancestor: _Ancestor, query: RunQuery, cursor: str, limit: int, check: Check
) -> PointsResult | None:
    stop = ancestor.stop if query.stop is None else min(query.stop, ancestor.stop)
    part = replace(query, stop=stop, process=None, attempt=None, upto=cursor)
    try:
        return query_points(store, [ancestor.ref], part, limit, check)
    except NotFoundError:
        return None


def _ancestors(store: Store, ref: RunRef) -> Iterator[_Ancestor]:
    """Yield the ancestors of a run, the nearest first."""
    seen = {ref.run_id}
    child, stop = ref.run_id, float("inf")
    for _ in range(_MAX_GENERATIONS):
        try:
            run = store.run(ref, ())
        except NotFoundError:
            return
        if run.parent is None or run.parent["run"] in seen:
            return
        ref = RunRef(run.parent["run"], run.project)
        seen.add(ref.run_id)
        stop = min(stop, run.parent["step"] + 1.0)
        yield _Ancestor(ref, child, stop)
