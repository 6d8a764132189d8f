"""What lifecycle events say about runs: states, attempts, configuration, tags, losses."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from tensormeter.conventions.semconv import RUN_ATTEMPT, RUN_CONFIG, RUN_END, RUN_START
from tensormeter.otlp.batch import Event
from tensormeter.server.store.models.canonical_json import canonical_json
from tensormeter.server.store.models.runs import State

__all__ = [
    "NUMBERED",
    "LifecycleUpdate",
    "ProcessLifecycle",
    "lifecycle_update",
    "present_state",
    "process_state",
    "run_lifecycle",
]


NUMBERED: Final = f'"{RUN_ATTEMPT}":'
"""Part of a resource's JSON if its sender numbers attempts."""

_PRECEDENCE: Final[tuple[State, ...]] = ("failed", "crashed", "preempted", "running", "finished")
_END_STATES: Final = ("finished", "crashed", "preempted")
_MAX_TAGS: Final = 100


@dataclass(frozen=True)
class ProcessLifecycle:
    """A process's attempt, the times of its latest start and end, how it ended, and whether its sender numbers attempts."""

    attempt: int
    started: int | None
    ended: int | None
    end_state: str | None
    numbered: bool

    @property
    def state(self) -> State | None:
        """As `process_state`."""
        return process_state(self.started, self.ended, self.end_state)

    @property
    def gone(self) -> int | None:
        """When it ended, if it has not started again."""
        return self.ended if self.ended is not None and self.ended >= (self.started or 0) else None


@dataclass(frozen=True)
class LifecycleUpdate:
    """What an event says about its run and process; None where it says nothing. What is JSON is canonical.

    Attributes:
        losses: JSON object: counts of what the process had to drop, by reason.
        starts: Whether the run starts.
        end_state: How it ended, if it did.
        config: JSON object.
        tags: JSON array.
    """

    losses: str | None = None
    starts: bool = False
    end_state: str | None = None
    config: str | None = None
    tags: str | None = None
    group: str | None = None
    notes: str | None = None


def lifecycle_update(event: Event) -> LifecycleUpdate:
    """Read an event."""
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
    given = details.get("config")
    config = canonical_json(given) if isinstance(given, Mapping) and given else None
    if event.name == RUN_CONFIG:
        return LifecycleUpdate(losses, config=config)
    tags = details.get("tags")
    group, notes = details.get("group"), details.get("notes")
    texts = None
    if isinstance(tags, Sequence) and not isinstance(tags, str | bytes):
        texts = canonical_json([tag for tag in tags if isinstance(tag, str)][:_MAX_TAGS])
    return LifecycleUpdate(
        losses,
        starts=True,
        config=config,
        tags=texts,
        group=group if isinstance(group, str) else None,
        notes=notes if isinstance(notes, str) else None,
    )


def run_lifecycle(processes: Sequence[ProcessLifecycle]) -> tuple[State, int, int | None]:
    """State, attempt and end of a run, from its processes."""
    attempt, members = _latest_attempt(processes)
    gone = [process.gone for process in members if process.state is not None]
    ended = max((time for time in gone if time is not None), default=None) if None not in gone else None
    return _run_state(process.state for process in members), attempt, ended


def present_state(state: State, updated: int, *, stalled: bool, now: int, stall_after: float) -> State:
    """The state that is shown: a run that should be running may be silent (times in nanoseconds), or make no steps."""
    if state == "running" and (stalled or now - updated > stall_after * 1e9):
        return "stalled"
    return state


def process_state(started: int | None, ended: int | None, end_state: str | None) -> State | None:
    """The state of a process from the times of its latest start and end; None if it had neither."""
    if ended is not None and ended >= (started or 0):
        return cast("State", end_state)
    return None if started is None else "running"


def _latest_attempt(processes: Sequence[ProcessLifecycle]) -> tuple[int, Sequence[ProcessLifecycle]]:
    """The number of the latest attempt, and its processes.

    Where no sender numbers attempts, one begins with a start after the ends of all that were there before. Where they do, a
    process may start after others have crashed.
    """
    attempt = max((process.attempt for process in processes), default=1)
    if any(process.numbered for process in processes):
        return attempt, [process for process in processes if process.attempt == attempt]
    started = sorted(
        (process for process in processes if process.started is not None), key=lambda process: process.started or 0
    )
    members: list[ProcessLifecycle] = [process for process in processes if process.started is None]
    for process in started:
        if members and all(other.gone is not None and other.gone < (process.started or 0) for other in members):
            attempt, members = attempt + 1, []
        members.append(process)
    return attempt, members


def _run_state(states: Iterable[State | None]) -> State:
    """The state of a run from those of its processes; a process without any says nothing."""
    known = {state for state in states if state is not None}
    for state in _PRECEDENCE:
        if state in known:
            return state
    return "running"
