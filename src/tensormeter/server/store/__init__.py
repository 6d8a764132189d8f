"""What the experiment server needs of a store: one interface, and the plain values that cross it.

A store keeps runs, their processes, their series of points and their events.
`SqliteStore` (module `sqlite`) is the implementation that ships.

What every implementation promises:

- A batch is stored whole or not at all, and it is durable against the death of the process when `append_*` returns.
- A batch id is stored once. The same id with another payload is refused.
- A point is unique by (project, run, process, metric, attributes, time). Where two batches carry the same point, the
  one that arrived first wins; that is what makes senders without batch ids safe to retry.
- What `append_*` has accepted is visible to the next read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tensormeter.errors import StoreError
from tensormeter.otlp.batch import Attribute, Batch, Event
from tensormeter.server.store.points import Points

__all__ = [
    "AmbiguousRunError",
    "BatchConflictError",
    "LastValue",
    "MetricSummary",
    "NotFoundError",
    "ProcessSummary",
    "ProjectSummary",
    "Receipt",
    "RunSummary",
    "Series",
    "State",
    "Store",
    "StoreUnavailableError",
    "TooManyPointsError",
    "XAxis",
]

State = Literal["running", "finished", "crashed", "failed"]
XAxis = Literal["step", "time"]

MAX_SERIES_POINTS: Final = 5_000_000
"""Points that one `series` read returns, at most."""


class NotFoundError(StoreError):
    """There is no such run."""


class AmbiguousRunError(StoreError):
    """Several projects have a run of this id, and none was named."""


class BatchConflictError(StoreError):
    """A batch id came a second time, with another payload."""


class TooManyPointsError(StoreError):
    """A read would return more points than the store's limit."""


class StoreUnavailableError(StoreError):
    """The store cannot do this now, and may be able to later: disk full, too much waiting to be written, closing."""


@dataclass(frozen=True)
class Receipt:
    """What became of a batch.

    Attributes:
        rejected: Points or events in it that the store refused for good; everything else is stored.
        message: Why, for people; "" if nothing was refused.
        duplicate: The batch was there already and nothing was stored again; the rest is as it was the first time.
    """

    rejected: int = 0
    message: str = ""
    duplicate: bool = False


@dataclass(frozen=True)
class ProjectSummary:
    """A project. `updated` is when something last arrived for it, in nanoseconds since the Unix epoch."""

    project: str
    runs: int
    updated: int


@dataclass(frozen=True)
class ProcessSummary:
    """A process of a run; `state` is None while the process has neither started nor ended by an event of its own."""

    process: str
    resource: Mapping[str, Any]
    state: State | None


@dataclass(frozen=True)
class RunSummary:
    """A run.

    Attributes:
        created: Time of its earliest point or event, nanoseconds since the Unix epoch.
        updated: When something last arrived for it, by the server's clock, nanoseconds since the Unix epoch.
        config: From the latest `tensormeter.run.start` that carries one, as JSON values.
        points: Stored points of all its series, those of `tensormeter.step` among them. A point that was resent
            without a batch id counts twice until the store has folded it.
    """

    project: str
    run_id: str
    name: str
    state: State
    created: int
    updated: int
    config: Mapping[str, Any]
    points: int
    processes: Sequence[ProcessSummary]


@dataclass(frozen=True)
class LastValue:
    """The point with the latest time; `step` is None if none was logged at that time."""

    time: int
    step: int | None
    value: int | float


@dataclass(frozen=True)
class MetricSummary:
    """One series of a run."""

    metric: str
    process: str
    attributes: Mapping[str, Any]
    unit: str
    description: str
    points: int
    last: LastValue | None


@dataclass(frozen=True, eq=False)
class Series:
    """Points of one series, in the order asked for.

    Attributes:
        points: n points with distinct times.
        steps: int64, shape (n,): the step logged at each point's time, where `stepped`; elsewhere 0.
        stepped: bool, shape (n,).
    """

    process: str
    attributes: Mapping[str, Any]
    points: Points
    steps: NDArray[np.int64] = field(repr=False)
    stepped: NDArray[np.bool_] = field(repr=False)


class Store(Protocol):
    """Threads: every method blocks on the disk and may be called on any thread, by any number at once.

    Reads do not wait for `append_*`, nor the other way round, beyond moments of work in memory.
    Whoever opened the store closes it, once, after the last call.

    Raises:
        StoreUnavailableError: From any method: not now; the same call may succeed later.
        StoreError: From any method: the store is damaged.
    """

    def append_metrics(self, batches: Sequence[Batch], *, payload: bytes, batch_id: str | None = None) -> Receipt:
        """Store the points of one request, once.

        Args:
            batches: The points.
            payload: The `ExportMetricsServiceRequest` that `decode_metrics` made `batches` of.
            batch_id: Names the request over retries; None if the sender gave no name.

        Raises:
            BatchConflictError: `batch_id` is known with another payload.
        """
        ...

    def append_events(
        self,
        resources: Sequence[tuple[Mapping[str, Attribute], Sequence[Event]]],
        *,
        payload: bytes,
        batch_id: str | None = None,
    ) -> Receipt:
        """Store the events of one request, once; arguments and errors as for `append_metrics`."""
        ...

    def projects(self) -> list[ProjectSummary]:
        """All projects, by name."""
        ...

    def runs(self, project: str | None, *, limit: int, offset: int) -> tuple[list[RunSummary], int]:
        """A page of runs, newest first, and how many there are in all."""
        ...

    def run(self, run_id: str, project: str | None = None) -> RunSummary:
        """One run.

        Raises:
            NotFoundError: There is none.
            AmbiguousRunError: `project` is None and several projects have one.
        """
        ...

    def metrics(self, run_id: str, project: str | None = None) -> list[MetricSummary]:
        """Every series of a run, by metric, process and attributes; errors as for `run`."""
        ...

    def series(
        self,
        run_id: str,
        metric: str,
        *,
        project: str | None = None,
        process: str | None = None,
        x: XAxis = "step",
        start: int | None = None,
        stop: int | None = None,
    ) -> list[Series]:
        """Every point of a metric, one entry a series.

        Args:
            x: "step" orders by (step, time), points without a step last; "time" orders by time.
            start: Only points with x >= start.
            stop: Only points with x < stop. A point without a step is in no range of steps.

        Raises:
            NotFoundError, AmbiguousRunError: As for `run`. A metric that the run does not have is an empty list.
            TooManyPointsError: More than the store's limit; the message says how to ask for less.
        """
        ...

    def problem(self) -> str | None:
        """What is wrong with the store at the moment, for people, or None. Never raises."""
        ...

    def close(self) -> None:
        """Finish what is under way and release the folder. Blocks until everything is on disk."""
        ...
