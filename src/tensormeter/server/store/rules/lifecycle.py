"""Lifecycle events of runs: states, attempts, config, tags and losses."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeGuard, cast

from tensormeter.conventions.semconv import RUN_ATTEMPT, RUN_CONFIG, RUN_END, RUN_START
from tensormeter.otlp.batch import Event
from tensormeter.server.store.models.canonical_json import canonical_json
from tensormeter.server.store.models.results import valid_definitions, valid_values
from tensormeter.server.store.models.runs import State
from tensormeter.server.store.rules.resource_identity import MAX_NAME

__all__ = [
    "NUMBERED",
    "LifecycleUpdate",
    "ProcessLifecycle",
    "config_time",
    "lifecycle_update",
    "present_state",
    "process_state",
    "run_lifecycle",
]


NUMBERED: Final = f'"{RUN_ATTEMPT}":'
"""Substring that a resource's JSON contains if the sender numbers attempts."""

_PRECEDENCE: Final[tuple[State, ...]] = ("failed", "crashed", "preempted", "running", "finished")
_END_STATES: Final = ("finished", "crashed", "preempted")
_MAX_TAGS: Final = 100

_EARLIER: Final = 1 << 10
"""Divisor that makes a time earlier than all present ones, and keeps the order of the times that are divided."""


@dataclass(frozen=True)
class ProcessLifecycle:
    """The lifecycle of a process.

    Attributes:
        attempt: Number of the process's attempt.
        started: Time of the latest start, in nanoseconds since the Unix epoch, or None.
        ended: Time of the latest end, in nanoseconds since the Unix epoch, or None.
        end_state: State reported by the latest end, or None.
        numbered: Whether the sender numbers attempts.
    """

    attempt: int
    started: int | None
    ended: int | None
    end_state: str | None
    numbered: bool

    @property
    def state(self) -> State | None:
        """State of the process; see `process_state`."""
        return process_state(self.started, self.ended, self.end_state)

    @property
    def final_end(self) -> int | None:
        """Time of the latest end; None if the process has not ended or has started again."""
        return self.ended if self.ended is not None and self.ended >= (self.started or 0) else None


@dataclass(frozen=True)
class LifecycleUpdate:
    """Changes that an event makes to its run and process. None leaves a field unchanged. All JSON is canonical.

    Attributes:
        losses: JSON object with the number of items that the process dropped, by reason.
        starts: Whether the event starts the run.
        end_state: State in which the process ended, if the event ends it.
        config: Config as a JSON object.
        tags: Tags as a JSON array.
        results: Values that the script wrote to the summary, as a JSON object by name.
        definitions: Definitions of metrics as a JSON array.
        parent: JSON object with the run and step from which the run was forked.
    """

    losses: str | None = None
    starts: bool = False
    end_state: str | None = None
    config: str | None = None
    tags: str | None = None
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None
    results: str | None = None
    definitions: str | None = None
    parent: str | None = None


def lifecycle_update(event: Event) -> LifecycleUpdate:
    """Return the changes that an event makes to its run and process."""
    details = event.body if isinstance(event.body, Mapping) else {}
    dropped = details.get("dropped")
    losses = None
    if isinstance(dropped, Mapping):
        losses = canonical_json({str(reason): n for reason, n in dropped.items() if isinstance(n, int)})
    if event.name == RUN_END:
        state = details.get("state", "finished")
        return LifecycleUpdate(losses, end_state=state if state in _END_STATES else "failed")
    if event.name not in (RUN_START, RUN_CONFIG):
        return LifecycleUpdate(losses)
    values = details.get("config")
    config = canonical_json(values) if isinstance(values, Mapping) and values else None
    summary, defined = details.get("summary"), details.get("definitions")
    results = canonical_json(valid_values(summary)) if isinstance(summary, Mapping) else None
    definitions = canonical_json(valid_definitions(defined)) if _is_list(defined) else None
    if event.name == RUN_CONFIG:
        return LifecycleUpdate(losses, config=config, results=results, definitions=definitions)
    tags = details.get("tags")
    group, job_type, notes = (details.get(name) for name in ("group", "job_type", "notes"))
    tags_json = None
    if _is_list(tags):
        tags_json = canonical_json([tag for tag in tags if isinstance(tag, str)][:_MAX_TAGS])
    return LifecycleUpdate(
        losses,
        starts=True,
        config=config,
        tags=tags_json,
        group=group if isinstance(group, str) else None,
        job_type=job_type if isinstance(job_type, str) else None,
        notes=notes if isinstance(notes, str) else None,
        results=results,
        definitions=definitions,
        parent=_parent(details.get("forked_from")),
    )


def config_time(event: Event, time: int, *, first: bool) -> int:
    """Return the time by which an event's config is compared with those of other events; the latest one is kept.

    Each rank starts with the config that the script passed to `init`. A rank that starts late must not undo changes that
    the first rank has made since. Starts of other ranks therefore count as earlier than all other events.

    Args:
        event: Event that contains a config.
        time: Time of the event, in nanoseconds since the Unix epoch.
        first: Whether the sender is the first rank, or has no rank.
    """
    return time if first or event.name != RUN_START else time // _EARLIER


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _parent(forked_from: object) -> str | None:
    """Return the run and step from which a run was forked as JSON; None if they are missing or invalid."""
    if not isinstance(forked_from, Mapping):
        return None
    run, step = forked_from.get("run"), forked_from.get("step")
    if not isinstance(run, str) or not 0 < len(run) <= MAX_NAME or type(step) is not int:
        return None
    return canonical_json({"run": run, "step": step})


def run_lifecycle(processes: Sequence[ProcessLifecycle]) -> tuple[State, int, int | None]:
    """Return the state, latest attempt and end time of a run, derived from its processes."""
    attempt, members = _latest_attempt(processes)
    ends = [process.final_end for process in members if process.state is not None]
    ended = max((time for time in ends if time is not None), default=None) if None not in ends else None
    return _run_state(process.state for process in members), attempt, ended


def present_state(state: State, updated: int, *, stalled: bool, now: int, stall_after: float) -> State:
    """Return the current state of a run.

    An unfinished run is stalled if it is marked as stalled, or if no data has arrived for longer than `stall_after`.

    Args:
        state: State derived from the run's processes.
        updated: Time of the last arrival, in nanoseconds since the Unix epoch.
        stalled: Whether the run is marked as stalled.
        now: Current time, in nanoseconds since the Unix epoch.
        stall_after: Seconds without an arrival after which an unfinished run is stalled.
    """
    if state == "running" and (stalled or now - updated > stall_after * 1e9):
        return "stalled"
    return state


def process_state(started: int | None, ended: int | None, end_state: str | None) -> State | None:
    """Return a process's state from the times of its latest start and end; None if it has neither."""
    if ended is not None and ended >= (started or 0):
        return cast("State", end_state)
    return None if started is None else "running"


def _latest_attempt(processes: Sequence[ProcessLifecycle]) -> tuple[int, Sequence[ProcessLifecycle]]:
    """Return the number of the latest attempt, and its processes.

    If senders number attempts, these numbers are used, so a process can join an attempt after others have crashed.
    Otherwise, an attempt begins when a process starts after all earlier processes have ended.
    """
    attempt = max((process.attempt for process in processes), default=1)
    if any(process.numbered for process in processes):
        return attempt, [process for process in processes if process.attempt == attempt]
    started = sorted(
        (process for process in processes if process.started is not None), key=lambda process: process.started or 0
    )
    members: list[ProcessLifecycle] = [process for process in processes if process.started is None]
    for process in started:
        if members and all(
            other.final_end is not None and other.final_end < (process.started or 0) for other in members
        ):
            attempt, members = attempt + 1, []
        members.append(process)
    return attempt, members


def _run_state(states: Iterable[State | None]) -> State:
    """Derive a run's state from the states of its processes, ignoring None."""
    known = {state for state in states if state is not None}
    for state in _PRECEDENCE:
        if state in known:
            return state
    return "running"
