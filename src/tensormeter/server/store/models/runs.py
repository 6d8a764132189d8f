"""Runs, processes and events as they cross the interface of a store."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "Change",
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
    """The result of storing a batch.

    Attributes:
        rejected: Number of points or events that the store refused permanently; all others are stored.
        message: Reasons, for people; "" if nothing was refused.
        duplicate: Whether the batch had been stored before. Nothing is stored again; the other fields are those of the first time.
    """

    rejected: int = 0
    message: str = ""
    duplicate: bool = False


@dataclass(frozen=True)
class ProjectSummary:
    """A project.

    Attributes:
        project: Name of the project.
        runs: Number of its runs.
        updated: Time of the last arrival of points or events, in nanoseconds since the Unix epoch.
    """

    project: str
    runs: int
    updated: int


@dataclass(frozen=True)
class RunRef:
    """A reference to a run; `project` may be None if only one project has a run with this id."""

    run_id: str
    project: str | None = None


@dataclass(frozen=True)
class ProcessSummary:
    """A process of a run.

    Attributes:
        state: State; None before the process has sent its first start or end.
        started: Time of its latest start, in nanoseconds since the Unix epoch; None if it sent none.
    """

    process: str
    attempt: int
    resource: Mapping[str, Any]
    state: State | None
    started: int | None = None


@dataclass(frozen=True)
class ProcessAttempt:
    """The attempt of a process, in a run with several attempts.

    Attributes:
        number: Number of the attempt, from 1.
        first_step: Lowest step that the process logged; None for attempt 1 and for processes without steps.
        began: Time of its earliest step, in nanoseconds since the Unix epoch; 0 without `first_step`.
        rank: Rank of the process, or None.
    """

    number: int
    first_step: int | None
    began: int
    rank: int | None


@dataclass(frozen=True)
class Summary:
    """A summary of the numbers of one metric of a run, over its processes and attributes.

    Attributes:
        last: Value with the latest time.
        min: Lowest value. `min`, `max` and `mean` are NaN if all values are NaN, or if series of one run differ in unit or kind.
        count: Number of points. A point that was resent without a batch id counts twice until the store has flushed it.
        last_step: Step logged at the time of `last`, or None.
        last_time: Time of `last`, in nanoseconds since the Unix epoch.
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
    """A run. Times are nanoseconds since the Unix epoch.

    Attributes:
        name: Name that a user gave, or else the name that was sent.
        created: Time of its earliest point or event.
        started: Time of its earliest start, or else `created`.
        ended: Time of its latest end; None while it is running.
        updated: Time of the last arrival of points or events, by the server's clock.
        newest: Time of its latest point, or the time of its arrival if that is earlier (a sender's clock is fast); 0 without points.
        config: Configuration from the latest `tensormeter.run.start` or `tensormeter.run.config` with one, as JSON values.
        points: Number of stored points of all its series, including `tensormeter.step`; for resent points see `Summary`.
        processes: Number of its processes.
        lost: Number of items that its processes reported as dropped, for any reason.
        summary: Summaries by metric; only those that were requested.
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
    tags: Sequence[str]
    notes: str
    archived: bool
    points: int
    processes: int
    lost: int
    config: Mapping[str, Any]
    summary: Mapping[str, Summary]


@dataclass(frozen=True)
class RunChanges:
    """A user's changes to a run; None leaves a field as it is."""

    name: str | None = None
    tags: Sequence[str] | None = None
    notes: str | None = None
    group: str | None = None
    archived: bool | None = None


@dataclass(frozen=True, eq=False)
class RunTable:
    """Some fields of many runs, in columns of equal length, for filtering and sorting.

    Attributes:
        runs: The store's numbers of the runs, for `Store.runs`.
        columns: Values by field; None for runs without a value.
    """

    runs: Sequence[int]
    columns: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class StoredEvent:
    """An event. Images in the body are replaced by their digests, see `Store.media`.

    Attributes:
        record: Other fields of the log record, if it has them: `severity_number`, `severity_text`, `trace_id`, `span_id`
            (hexadecimal), `flags`, `observed_time`, and `scope` (`name`, `version`, `attributes`).
        size: Number of characters of the body as JSON.
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
    """Events, the newest first.

    Attributes:
        more: Whether the limit, or the maximum size of an answer, may have cut off older events.
    """

    def __init__(self, events: Iterable[StoredEvent], *, more: bool) -> None:
        super().__init__(events)
        self.more = more


@dataclass(frozen=True)
class Change:
    """The changes of a run: metrics with new points, its present state, and whether it has new events."""

    run: RunRef
    metrics: Sequence[str]
    state: State
    events: bool


@dataclass(frozen=True)
class Changes:
    """The changes since a cursor, and the cursor for the next query."""

    cursor: str
    changes: Sequence[Change]
