"""The query object: which points of a run a request reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensormeter.server.query.points.axis import Axis
from tensormeter.server.query.points.shadowing import AttemptChoice
from tensormeter.server.query.points.variant import ANY, VariantFilter
from tensormeter.server.store import Series, SeriesRollup

__all__ = ["RunQuery"]


@dataclass(frozen=True)
class RunQuery:
    """A query for points of one run. It is hashable if it has no `attributes`.

    Attributes:
        metrics: Names of the metrics; names that the run does not have are ignored.
        axis: Axis of x.
        start: Lowest x of the range, in units of x: steps, or seconds. `RunReader.raw` expects an integer: a step, or nanoseconds.
        stop: Lowest x after the range, in the units of `start`.
        process: Id of a process; None for all processes.
        attempt: Attempts to read.
        after: Cursor of an earlier read: only points that arrived after it are read.
        variant: Kind, scope and unit that a series must have.
        attributes: Attributes that a series must have, among others.
        max_points: Maximum number of points in a series; 0 for all points.
        numeric: True for numbers, False for distributions.
    """

    metrics: tuple[str, ...]
    axis: Axis
    start: float | None = None
    stop: float | None = None
    process: str | None = None
    attempt: AttemptChoice = None
    after: str | None = None
    variant: VariantFilter = ANY
    attributes: Mapping[str, Any] | None = None
    max_points: int = 1000
    numeric: bool = True

    def matches(self, series: Series | SeriesRollup) -> bool:
        """Return whether a series has the variant and the attributes of the query."""
        if not self.variant.matches(series):
            return False
        return not self.attributes or self.attributes.items() <= dict(series.attributes).items()
