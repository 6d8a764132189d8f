"""Series of points as they cross the interface of a store, and selections of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tensormeter.otlp.check import Check, no_check
from tensormeter.server.store.models.metric_kind import Kind
from tensormeter.server.store.models.points import Column, Points
from tensormeter.server.store.models.rollup_blocks import Blocks
from tensormeter.server.store.models.runs import ProcessAttempt

__all__ = ["MAX_READ_POINTS", "NO_GAPS", "MetricSummary", "Reading", "Selection", "Series", "SeriesRollup"]

MAX_READ_POINTS: Final = 20_000_000
"""Maximum number of points that one read looks at."""


NO_GAPS: Final[NDArray[np.int64]] = np.empty(0, np.int64)


@dataclass(frozen=True)
class MetricSummary:
    """One series of a run.

    Attributes:
        last: Latest value; None for distributions and without points.
        last_time: Time of the latest point, in nanoseconds since the Unix epoch; None without points.
        last_step: Step of the latest point, or None.
        scope: Instrumentation scope, see `Series`.
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
    """Points of one series by ascending, distinct time.

    Attributes:
        scope: Name of the instrumentation scope, or, if the scope has attributes, JSON of a list of name and attributes. "" for
            tensormeter's own series, and for senders that name no scope.
        gaps: int64, ascending: times at which the sender reported that there is no value, if gaps were requested. The line is
            interrupted there.
    """

    process: str
    metric: str
    kind: Kind
    attributes: Mapping[str, Any]
    points: Column = field(repr=False)
    scope: str = ""
    unit: str = ""
    gaps: NDArray[np.int64] = field(default_factory=lambda: NO_GAPS, repr=False)


@dataclass(frozen=True)
class Selection:
    """A selection of points of a run.

    Attributes:
        metrics: Names of the metrics; names that the run does not have are ignored.
        process: Id of a process; None for all.
        numeric: True for numbers (`Points`), False for distributions (`Blobs`).
        start: Earliest time, in nanoseconds since the Unix epoch.
        stop: End of the range of times, exclusive.
        after: Cursor: only points that arrived after it are read, if the store still remembers them, and no attempt was found to
            begin earlier since; else all points are read.
        limit: Maximum number of points and gaps to look at.
        gaps: Whether to read gaps. New gaps after the cursor also make the read return all points.
        check: Callable for each series; an exception of it ends the read.
        damaged: List that a message is appended to for each damaged part, which is left out; None to raise an error instead.
    """

    metrics: Sequence[str]
    process: str | None = None
    numeric: bool = True
    start: int | None = None
    stop: int | None = None
    after: str | None = None
    limit: int = MAX_READ_POINTS
    gaps: bool = False
    check: Check = field(default=no_check, compare=False, repr=False)
    damaged: list[str] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class Reading:
    """The result of a read of points.

    Attributes:
        series: Series by metric, process and attributes; none without points.
        cursor: Opaque name of the state that was read, for a later read with `after`.
        complete: False if these are only the points that arrived after a cursor.
        started: Start of the run, in nanoseconds since the Unix epoch.
        attempts: Attempts of the run's processes; empty if all are of attempt 1.
    """

    series: Sequence[Series]
    cursor: str
    complete: bool
    started: int
    attempts: Mapping[str, ProcessAttempt]


@dataclass(frozen=True, eq=False)
class SeriesRollup:
    """A series of numbers for drawing: blocks of points, or points with their steps.

    Attributes:
        scope: Instrumentation scope, see `Series`.
        points: Points by ascending, distinct time; None if there are blocks.
        steps: int64, shape (n,): steps logged at the times of the points; 0 if not requested. None if there are blocks.
        blocks: Blocks by ascending time, and by ascending step if steps were requested. None if there are points.
        gaps: Gaps, see `Series`.
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
