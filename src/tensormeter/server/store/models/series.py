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

__all__ = ["MAX_READ_POINTS", "NO_GAPS", "MetricSummary", "Reading", "Selection", "Series", "Thinned"]

MAX_READ_POINTS: Final = 20_000_000
"""Points that one read looks at, at most."""


NO_GAPS: Final[NDArray[np.int64]] = np.empty(0, np.int64)


@dataclass(frozen=True)
class MetricSummary:
    """One series of a run; `last*` are None if it has no points, `last` also if they are distributions. `scope` as in `Series`."""

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
        scope: The instrumentation scope: its name, or if it has attributes, JSON of a list of name and attributes; "" for
            what tensormeter itself records, and for senders that name no scope.
        gaps: int64, ascending: times at which the sender said that there is no value, if they were asked for. The line is
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
    """Which points of a run are to be read.

    Attributes:
        metrics: Names; those that the run does not have are passed over.
        process: Only of this process.
        numeric: Numbers (`Points`), or else distributions (`Blobs`).
        start: Only points with time >= start.
        stop: Only points with time < stop.
        after: Only points that arrived after this cursor, if the store still knows which, and no attempt has turned out
            to begin earlier since; else all.
        limit: Points to look at, at most, and gaps among them.
        gaps: Whether gaps are wanted. Then also gaps that arrived after the cursor make it read all.
        check: Called for each series; whatever it raises ends the read.
        damaged: What is damaged of the series asked for is left out, and a text about it appended here; None: it is an error.
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
    """What a read of points found.

    Attributes:
        series: By metric, process and attributes; none without points.
        cursor: Names the state that was read, for a later read with `after`. Opaque.
        complete: False if these are only the points that arrived after a cursor.
        started: Of the run.
        attempts: Of the run's processes; empty if all are of attempt 1.
    """

    series: Sequence[Series]
    cursor: str
    complete: bool
    started: int
    attempts: Mapping[str, ProcessAttempt]


@dataclass(frozen=True, eq=False)
class Thinned:
    """A series of numbers as it is needed to draw it: either blocks of points, or points with their steps.

    Attributes:
        scope: As in `Series`; so are `gaps`.
        points: By ascending, distinct time; None if there are blocks.
        steps: int64, shape (n,): logged at the times of points; 0 if they were not asked for. None if there are blocks.
        blocks: By ascending time; if steps were asked for, also by ascending step. None if there are points.
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
