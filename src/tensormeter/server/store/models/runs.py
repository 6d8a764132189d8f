"""Values that describe projects, runs, processes and events."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from tensormeter.server.store.models.results import NO_RESULTS, Results

__all__ = [
    "MAX_CHANGED_METRICS",
    "Change",
    "ChangedRuns",
    "Changes",
    "EventPage",
    "ProcessAttempt",
    "ProcessSummary",
    "ProjectSummary",
    "Receipt",
    "RunChanges",
    "RunRef",
    "RunSummary",
    "RunTable",
    "State",
    "StoredEvent",
    "Summary",
]


State = Literal["running", "finished", "failed", "crashed", "preempted", "stalled"]


@dataclass(frozen=True)
class Receipt:
    """The result of storing a request.

    Attributes:
        rejected: Number of points or events that the store permanently refused; all others are stored.
        message: Human-readable reasons for the refusals; "" if nothing was refused.
        duplicate: Whether the request was already stored. The other fields then repeat the first receipt.
    """

    rejected: int = 0
    message: str = ""
    duplicate: bool = False


@dataclass(frozen=True)
class ProjectSummary:
    """A project.

    Attributes:
        project: Name of the project.
        runs: Number of runs in the project.
        updated: Time when points or events last arrived, in nanoseconds since the Unix epoch.
    """

    project: str
    runs: int
    updated: int


@dataclass(frozen=True)
class RunRef:
    """A reference to a run. `project` may be None if only one project has a run with this ID."""

    run_id: str
    project: str | None = None


@dataclass(frozen=True)
class ProcessSummary:
    """A process of a run.

    Attributes:
        state: State of the process; None until its first start or end arrives.
        started: Time of the latest start, in nanoseconds since the Unix epoch; None if no start has arrived.
        losses: Number of items that the process dropped, by reason.
    """

    process: str
    attempt: int
    resource: Mapping[str, Any]
    state: State | None
    started: int | None = None
    losses: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ProcessAttempt:
    """The attempt to which a process belongs, in a run with several attempts.

    Attributes:
        number: Attempt number, starting at 1.
        first_steps: Lowest step of each requested metric that the process logged; empty for attempt 1.
        began: Time of the process's earliest step, in nanoseconds since the Unix epoch; 0 for attempt 1, or if the process
            logged no steps.
        rank: Rank of the process, or None.
    """

    number: int
    first_steps: Mapping[str, int]
    began: int
    rank: int | None


@dataclass(frozen=True)
class Summary:
    """A summary of a metric's numbers in one run, across all processes and attributes.

    Attributes:
        last: Value of the latest point.
        min: Lowest value. `min`, `max` and `mean` are NaN if all values are NaN, or if the metric's series differ in
            unit or kind.
        count: Number of points. In a SQLite store, a point resent without a batch ID counts twice until the next flush.
        last_step: Step logged at `last_time`, or None.
        last_time: Time of the latest point, in nanoseconds since the Unix epoch.
    """

    last: int | float
    min: float
    max: float
    mean: float
    count: int
    last_step: int | None
    last_time: int


@dataclass(frozen=True)
class RunSummary:
    """A run. All times are in nanoseconds since the Unix epoch.

    Attributes:
        name: Name set by a user, or else the name that the sender gave.
        created: Time of the earliest point or event.
        started: Time of the earliest start, or else `created`.
        ended: Time of the latest end; None while the run is active.
        updated: Time when points or events last arrived, on the server's clock.
        newest: Time of the latest point; 0 without points. If the sender's clock is fast, the time of the point's
            arrival is used instead.
        config: Config as JSON values, from the latest `tensormeter.run.start` or `tensormeter.run.config` event that
            contains a config. Starts of ranks other than the first count as earlier than all other events.
        points: Number of stored points in all series, including `tensormeter.step`. For resent points, see
            `Summary.count`.
        processes: Number of processes.
        lost: Number of items that the processes reported as dropped.
        summary: Requested summaries, by metric.
        results: Statements of the script about the results.
        parent: Run and step from which the run was forked, as `{"run": ID, "step": N}`; None if it was not forked.
    """

    project: str
    run_id: str
    name: str
    state: State
    attempt: int
    created: int
    started: int
    ended: int | None
    updated: int
    newest: int
    group: str
    job_type: str
    tags: Sequence[str]
    notes: str
    archived: bool
    points: int
    processes: int
    lost: int
    config: Mapping[str, Any]
    summary: Mapping[str, Summary]
    results: Results = NO_RESULTS
    parent: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class RunChanges:
    """A user's changes to a run. None leaves a field unchanged."""

    name: str | None = None
    tags: Sequence[str] | None = None
    notes: str | None = None
    group: str | None = None
    job_type: str | None = None
    archived: bool | None = None


@dataclass(frozen=True, eq=False)
class RunTable:
    """Selected fields of many runs, in columns of equal length, for filtering and sorting.

    Attributes:
        runs: Run numbers in the store, for `Store.runs`.
        columns: Values of all runs, by field name; None where a run has no value.
    """

    runs: Sequence[int]
    columns: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class ChangedRuns:
    """Runs that have changed since a position.

    Attributes:
        position: Position to pass to the next call of `Store.changed`.
        runs: Numbers of the runs of all projects that have changed, appeared or disappeared; None if any may have.
    """

    position: int
    runs: frozenset[int] | None


@dataclass(frozen=True)
class StoredEvent:
    """An event. In the body, images are replaced with references for `Store.media`.

    Attributes:
        record: Remaining fields of the log record, if present: `severity_number`, `severity_text`, `trace_id`,
            `span_id` (both hexadecimal), `flags`, `observed_time`, and `scope` (`name`, `version`, `attributes`).
        size: Number of characters in the body as JSON.
    """

    id: int
    time: int
    name: str
    step: int | None
    process: str
    attributes: Mapping[str, Any]
    body: Any
    record: Mapping[str, Any] = field(default_factory=dict)
    size: int = 0


class EventPage(list[StoredEvent]):
    """A page of events, newest first.

    Attributes:
        more: Whether older events may have been left out because of the limit or the maximum size of a response.
    """

    def __init__(self, events: Iterable[StoredEvent], *, more: bool) -> None:
        super().__init__(events)
        self.more = more


MAX_CHANGED_METRICS: Final = 1000
"""Maximum number of metrics that a `Change` names."""


@dataclass(frozen=True)
class Change:
    """Changes of a run.

    Attributes:
        metrics: Names of the metrics with new points, in ascending order; empty if there are more than
            `MAX_CHANGED_METRICS`.
        state: Current state of the run.
        events: Whether the run has new events.
        many: Whether more than `MAX_CHANGED_METRICS` metrics have new points.
        logs: Whether the run has new log lines.
    """

    run: RunRef
    metrics: Sequence[str]
    state: State
    events: bool
    many: bool = False
    logs: bool = False


@dataclass(frozen=True)
class Changes:
    """Changes since a cursor, and the cursor for the next query."""

    cursor: str
    changes: Sequence[Change]
