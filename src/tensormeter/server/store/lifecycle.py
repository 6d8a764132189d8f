"""What lifecycle events say about runs: states, attempts, configuration, tags, losses."""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from tensormeter.otlp.batch import Event
from tensormeter.server.store import State
from tensormeter.server.store.canonical import canonical_json

__all__ = ["HEARTBEAT", "PROCESS_END", "RUN_END", "RUN_START", "apply_event", "process_state", "refresh_run"]

RUN_START: Final = "tensormeter.run.start"
RUN_END: Final = "tensormeter.run.end"
PROCESS_END: Final = "tensormeter.process.end"
HEARTBEAT: Final = "tensormeter.run.heartbeat"

_PRECEDENCE: Final[tuple[State, ...]] = ("failed", "crashed", "preempted", "running", "finished")
_END_STATES: Final = ("finished", "crashed", "preempted")
_MAX_TAGS: Final = 100


@dataclass(frozen=True)
class _Life:
    attempt: int
    started: int | None
    ended: int | None
    end_state: str | None

    @property
    def state(self) -> State | None:
        return process_state(self.started, self.ended, self.end_state)

    @property
    def gone(self) -> int | None:
        return self.ended if self.ended is not None and self.ended >= (self.started or 0) else None


def apply_event(connection: sqlite3.Connection, run: int, process: int, event: Event, time: int) -> None:
    """Write into the rows of run and process what an event says about them; inside the caller's transaction."""
    details = event.body if isinstance(event.body, Mapping) else {}
    dropped = details.get("dropped")
    if isinstance(dropped, Mapping):
        counts = {str(reason): n for reason, n in dropped.items() if isinstance(n, int)}
        connection.execute("UPDATE process SET losses = ? WHERE id = ?", (canonical_json(counts), process))
    if event.name == RUN_START:
        connection.execute("UPDATE process SET started = max(ifnull(started, 0), ?) WHERE id = ?", (time, process))
        connection.execute("UPDATE run SET started = min(ifnull(started, ?), ?) WHERE id = ?", (time, time, run))
        _apply_start(connection, run, details, time)
        refresh_run(connection, run)
    elif event.name == RUN_END:
        state = details.get("state", "finished")
        connection.execute(
            "UPDATE process SET ended = ?, end_state = ? WHERE id = ? AND ifnull(ended, 0) <= ?",
            (time, state if state in _END_STATES else "failed", process, time),
        )
        refresh_run(connection, run)


def refresh_run(connection: sqlite3.Connection, run: int) -> None:
    """Bring the run's state, attempt and end up to date with those of its processes."""
    lives = [
        _Life(*row)
        for row in connection.execute("SELECT attempt, started, ended, end_state FROM process WHERE run = ?", (run,))
    ]
    attempt, members = _latest_attempt(lives)
    gone = [life.gone for life in members if life.state is not None]
    ended = max((time for time in gone if time is not None), default=None) if None not in gone else None
    connection.execute(
        "UPDATE run SET state = ?, attempt = ?, ended = ?, started = ifnull(started, ?), stalled = 0 WHERE id = ?",
        (
            _run_state(life.state for life in members),
            attempt,
            ended,
            min((life.started for life in lives if life.started is not None), default=None),
            run,
        ),
    )


def process_state(started: int | None, ended: int | None, end_state: str | None) -> State | None:
    """The state of a process from the times of its latest start and end; None if it had neither."""
    if ended is not None and ended >= (started or 0):
        return cast("State", end_state)
    return None if started is None else "running"


def _apply_start(connection: sqlite3.Connection, run: int, details: Mapping[str, Any], time: int) -> None:
    config = details.get("config")
    if isinstance(config, Mapping) and config:
        connection.execute(
            "UPDATE run SET config = ?, config_time = ? WHERE id = ? AND config_time <= ?",
            (canonical_json(config), time, run, time),
        )
    tags, group, notes = details.get("tags"), details.get("group"), details.get("notes")
    if isinstance(tags, Sequence) and not isinstance(tags, str | bytes):
        texts = [tag for tag in tags if isinstance(tag, str)][:_MAX_TAGS]
        # What a user has changed stays.
        connection.execute("UPDATE run SET tags = ifnull(tags, ?) WHERE id = ?", (canonical_json(texts), run))
    if isinstance(group, str):
        connection.execute("UPDATE run SET grp = ifnull(grp, ?) WHERE id = ?", (group, run))
    if isinstance(notes, str):
        connection.execute("UPDATE run SET notes = ifnull(notes, ?) WHERE id = ?", (notes, run))


def _latest_attempt(lives: Sequence[_Life]) -> tuple[int, Sequence[_Life]]:
    """The number of the latest attempt, and its processes.

    Senders that do not number their attempts: one begins with a start after the ends of all that were there before.
    """
    attempt = max((life.attempt for life in lives), default=1)
    if attempt > 1:
        return attempt, [life for life in lives if life.attempt == attempt]
    started = sorted((life for life in lives if life.started is not None), key=lambda life: life.started or 0)
    members: list[_Life] = [life for life in lives if life.started is None]
    for life in started:
        if members and all(other.gone is not None and other.gone < (life.started or 0) for other in members):
            attempt, members = attempt + 1, []
        members.append(life)
    return attempt, members


def _run_state(states: Iterable[State | None]) -> State:
    """The state of a run from those of its processes; a process without any says nothing."""
    known = {state for state in states if state is not None}
    for state in _PRECEDENCE:
        if state in known:
            return state
    return "running"
