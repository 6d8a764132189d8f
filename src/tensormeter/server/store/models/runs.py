"""The plain values that cross the interface of a store."""

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
class RunRef:
    """A run, by name; `project` may be None where no two projects have a run of this id."""

    run_id: str
    project: str | None = None


@dataclass(frozen=True)
class ProcessSummary:
    """A process of a run.

    Attributes:
        state: None while the process has neither started nor ended by an event of its own.
        started: Unix time in nanoseconds of its latest start; None if it sent none.
    """

    process: str
    attempt: int
    resource: Mapping[str, Any]
    state: State | None
    started: int | None = None


@dataclass(frozen=True)
class ProcessAttempt:
    """Where a process stands in a run that was attempted several times.

    Attributes:
        number: Of the attempt, from 1.
        first_step: The lowest step that it logged; None if it is of attempt 1, or logged no steps.
        began: When it logged its earliest step, in nanoseconds since the Unix epoch; 0 where there is no `first_step`.
        rank: None if it has none.
    """

    number: int
    first_step: int | None
    began: int
    rank: int | None


@dataclass(frozen=True)
class Summary:
    """The numbers of one metric of a run, over its processes and attribute sets.

    Attributes:
        last: The value with the latest time.
        min: NaN if there are none but NaN, or, of one run, if series differ in unit or kind; so are `max` and `mean`.
        count: Points. One that was resent without a batch id counts twice until the store has folded it.
        last_step: The step logged at the time of `last`, or None.
        last_time: Nanoseconds since the Unix epoch.
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
        name: As a user named it, or else as it was sent.
        created: Time of its earliest point or event.
        started: Time of its earliest start, or else `created`.
        ended: Time of its latest end; None while it goes on.
        updated: When something last arrived for it, by the server's clock.
        newest: Time of its latest point, or when it arrived if that was earlier, as with clocks that are fast; 0 if there is none.
        config: From the latest `tensormeter.run.start` or `tensormeter.run.config` that carries one, as JSON values.
        points: Stored points of all its series, those of `tensormeter.step` among them; resent ones as for `Summary`.
        processes: How many.
        lost: What they said they had to drop, for whatever reason.
        summary: By metric; only what was asked for.
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
    """What a user changes of a run; None leaves it as it is."""

    name: str | None = None
    tags: Sequence[str] | None = None
    notes: str | None = None
    group: str | None = None
    archived: bool | None = None


@dataclass(frozen=True, eq=False)
class RunTable:
    """Some fields of many runs, in columns of equal length, for filtering and sorting.

    Attributes:
        runs: The store's own numbers of the runs, for `Store.runs`.
        columns: By field; None where a run has no such thing.
    """

    runs: Sequence[int]
    columns: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class StoredEvent:
    """An event; bytes of images are replaced by their digests, see `media`.

    Attributes:
        record: Fields of the log record next to these, where it has them: `severity_number`, `severity_text`, `trace_id`,
            `span_id` (hexadecimal), `flags`, `observed_time`, and `scope` (`name`, `version`, `attributes`).
        size: Characters of the body as JSON.
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
        more: Whether there may be older ones, for which the limit, or the size of an answer, left no room.
    """

    def __init__(self, events: Iterable[StoredEvent], *, more: bool) -> None:
        super().__init__(events)
        self.more = more


@dataclass(frozen=True)
class Change:
    """What is new about a run: the metrics that have grown, its present state, and whether it has new events."""

    run: RunRef
    metrics: Sequence[str]
    state: State
    events: bool


@dataclass(frozen=True)
class Changes:
    """What is new since a cursor, and the cursor to ask with next time."""

    cursor: str
    changes: Sequence[Change]
