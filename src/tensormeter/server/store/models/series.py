"""Series of points, and selections of points to read."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.store.models.canonical_json import canonical_json
from tensormeter.server.store.models.metric_kind import Kind
from tensormeter.server.store.models.points import Column, Points
from tensormeter.server.store.models.rollup_blocks import Blocks
from tensormeter.server.store.models.runs import ProcessAttempt

__all__ = [
    "MAX_READ_POINTS",
    "NO_GAPS",
    "MetricSummary",
    "ProcessRollups",
    "Reading",
    "Selection",
    "Series",
    "SeriesRollup",
]

MAX_READ_POINTS: Final = 20_000_000
"""Maximum number of points in one read."""


NO_GAPS: Final[NDArray[np.int64]] = np.empty(0, np.int64)


@dataclass(frozen=True)
class MetricSummary:
    """A series of a run, without its points.

    Attributes:
        last: Value of the latest point; None for distributions and for series without points.
        last_time: Time of the latest point, in nanoseconds since the Unix epoch; None without points.
        last_step: Step of the latest point, or None.
        scope: Instrumentation scope; see `Series`.
    """

    metric: str
    kind: Kind
    process: str
    attempt: int
    attributes: Mapping[str, Any]
    unit: str
    description: str
    points: int
    last: int | float | None
    last_time: int | None
    last_step: int | None
    scope: str = ""


@dataclass(frozen=True, eq=False)
class Series:
    """The points of one series, with distinct times in ascending order.

    Attributes:
        scope: Name of the instrumentation scope; "" for tensormeter's own series and for senders without a scope name.
            If the scope has attributes, a JSON list of the scope's name and attributes.
        gaps: int64, ascending: times at which the sender reported a missing value, where charts interrupt the line;
            empty unless gaps were requested.
    """

    process: str
    metric: str
    kind: Kind
    attributes: Mapping[str, Any]
    points: Column = field(repr=False)
    scope: str = ""
    unit: str = ""
    gaps: NDArray[np.int64] = field(default_factory=lambda: NO_GAPS, repr=False)


@dataclass(frozen=True, eq=False)
class SeriesFilter:
    """A filter for the series of some metrics.

    Attributes:
        metrics: Names of the metrics. Series of other metrics are accepted.
        attributes: Required attributes of a series. A series may have additional attributes.
        matches: Function that decides on a series from its kind, scope and unit.
    """

    metrics: Collection[str]
    attributes: Mapping[str, Any]
    matches: Callable[[Kind, str, str], bool]

    def accepts(self, metric: str, kind: Kind, scope: str, unit: str, attributes: str) -> bool:
        """Return whether a series is accepted, given its attributes as JSON."""
        if metric not in self.metrics:
            return True
        return self.matches(kind, scope, unit) and (
            not self.attributes or self.attributes.items() <= json.loads(attributes).items()
        )

    def texts(self) -> list[str]:
        """Return texts that the JSON of an accepted series' attributes contains, so that a store reads few others."""
        texts = (_part_of_json(key, value) for key, value in self.attributes.items())
        return [text for text in texts if text.isprintable()]  # statements cannot contain surrogates


def _part_of_json(key: str, value: Any) -> str:
    name = f"{canonical_json(key)}:"
    # Other values have several encodings: 7 equals 7.0, and 1 equals true.
    return name + canonical_json(value) if isinstance(value, str) else name


@dataclass(frozen=True)
class Selection:
    """A selection of a run's points.

    Attributes:
        metrics: Names of the metrics. Metrics that the run does not have are ignored.
        process: Process ID; None for all processes.
        numeric: Whether to read numbers (`Points`) rather than distributions (`Blobs`).
        start: Start of the time range, inclusive, in nanoseconds since the Unix epoch.
        stop: End of the time range, exclusive, in nanoseconds since the Unix epoch.
        after: Cursor of an earlier read, to read only points that arrived after that read; None to read all points.
            All points are also read if the cursor is too old, or if the start of an attempt has changed.
        upto: Current cursor of the store, to omit points that arrived after it, so that several reads describe the same
            state; None for the cursor at the start of the read.
        limit: Maximum number of points and gaps to read.
        gaps: Whether to read gaps. If gaps have arrived since the cursor `after`, all points are read.
        accepts: Filter for series; None to accept all.
        check: Function called for each series; it can raise an exception to stop the read.
        damaged: List that receives a message for each damaged part, which is then omitted; None to raise an error
            instead.
        shadowing: Names of further metrics whose first steps `Reading.attempts` contains.
    """

    metrics: Sequence[str]
    process: str | None = None
    numeric: bool = True
    start: int | None = None
    stop: int | None = None
    after: str | None = None
    upto: str | None = None
    limit: int = MAX_READ_POINTS
    gaps: bool = False
    accepts: SeriesFilter | None = field(default=None, compare=False, repr=False)
    check: Check = field(default=no_check, compare=False, repr=False)
    damaged: list[str] | None = field(default=None, compare=False, repr=False)
    shadowing: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Reading:
    """The result of reading points.

    Attributes:
        series: Series with points, ordered by metric, process and attributes.
        cursor: Opaque cursor, to pass to a later read as `after`. The selection's `upto`, if that was given.
        complete: Whether all selected points were read, rather than only those that arrived after a cursor.
        started: Start of the run, in nanoseconds since the Unix epoch.
        attempts: Attempts of the run's processes, with the first steps of the selected metrics; empty if all processes
            belong to attempt 1.
    """

    series: Sequence[Series]
    cursor: str
    complete: bool
    started: int
    attempts: Mapping[str, ProcessAttempt]


@dataclass(frozen=True, eq=False)
class SeriesRollup:
    """A numeric series for charts, as blocks or as points with steps.

    Attributes:
        scope: Instrumentation scope; see `Series`.
        points: Points with distinct times in ascending order; None if there are blocks.
        steps: int64, shape (n,): steps logged at the times of the points, or zeros if steps were not requested. None if
            there are blocks.
        blocks: Blocks in ascending order of time, and also of steps if requested; None if there are points.
        gaps: Gaps; see `Series`.
    """

    process: str
    metric: str
    kind: Kind
    attributes: Mapping[str, Any]
    points: Points | None = field(repr=False)
    steps: NDArray[np.int64] | None = field(repr=False)
    blocks: Blocks | None = field(repr=False)
    scope: str = ""
    unit: str = ""
    gaps: NDArray[np.int64] = field(default_factory=lambda: NO_GAPS, repr=False)


class ProcessRollups(NamedTuple):
    """The series of one process in a scan.

    Attributes:
        series: Series with points in the range, ordered by metric and attributes; None if the process must be read as
            points, because its steps are not in time order, are not integers, or are in several series.
    """

    process: str
    series: Sequence[SeriesRollup] | None
