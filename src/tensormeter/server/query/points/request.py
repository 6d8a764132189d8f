"""The query for points of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensormeter.server.query.points.axis import Axis
from tensormeter.server.query.points.shadowing import AttemptChoice
from tensormeter.server.query.points.variant import ANY, VariantFilter
from tensormeter.server.store import Series, SeriesRollup
from tensormeter.server.store.models.series import SeriesFilter

__all__ = ["RunQuery"]


@dataclass(frozen=True)
class RunQuery:
    """A query for points of one run. It is hashable only if `attributes` is None.

    Attributes:
        metrics: Names of the metrics. Metrics that the run does not have are ignored.
        axis: The x axis.
        start: Start of the x range, inclusive, in the unit of the axis, with times in seconds. `RunReader.raw` expects
            an integer: a step, or a time in nanoseconds.
        stop: End of the x range, exclusive, in the same unit as `start`.
        process: Process ID; None for all processes.
        attempt: Choice of attempts; see `AttemptChoice`.
        after: Cursor of an earlier read, to read only points that arrived after it; None for all points.
        variant: Filter for the variants of series.
        attributes: Required attributes of a series. A series may have additional attributes.
        max_points: Maximum number of points in a series; 0 for all points.
        numeric: True for numbers, False for distributions.
        upto: Current cursor of the store, to omit points that arrived after it; see `Selection`.
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
    upto: str | None = None

    def series_filter(self) -> SeriesFilter | None:
        """Return the filter for the series of the query's metrics; None if there is none, or the x axis needs others."""
        if (self.variant == ANY and not self.attributes) or self.axis.metric in self.metrics:
            return None
        return SeriesFilter(self.metrics, self.attributes or {}, self.variant.accepts)

    def matches(self, series: Series | SeriesRollup) -> bool:
        """Return whether a series has the query's variant and attributes."""
        if not self.variant.matches(series):
            return False
        return not self.attributes or self.attributes.items() <= dict(series.attributes).items()
