"""The attempts of a run, and the metrics whose points later attempts shadow."""

from collections.abc import Sequence
from typing import NamedTuple

from tensormeter.server.query.points.shadowing import Attempts
from tensormeter.server.store import RunRef, Selection, Store

__all__ = ["HiddenPart", "hidden_parts"]


class HiddenPart(NamedTuple):
    """The points of a metric in an attempt that later attempts shadow: those whose step is not below `step`."""

    metric: str
    attempt: int
    step: int


def hidden_parts(store: Store, ref: RunRef, metrics: Sequence[str]) -> list[HiddenPart]:
    """Return the shadowed parts of metrics, ordered by metric and attempt.

    Only an attempt whose latest point of the metric is shadowed counts.
    """
    attempts = Attempts(store.read(ref, Selection([], shadowing=metrics)).attempts)
    starts = attempts.starts()
    last: dict[tuple[str, int], int] = {}
    for series in store.metrics(ref, [*starts]) if starts else ():
        if series.last_step is not None:
            key = series.metric, attempts.number(series.process)
            last[key] = max(last.get(key, series.last_step), series.last_step)
    parts = []
    for (metric, attempt), step in sorted(last.items()):
        first = min((start for number, (start, _) in starts[metric].items() if number > attempt), default=None)
        if first is not None and step >= first:
            parts.append(HiddenPart(metric, attempt, first))
    return parts
