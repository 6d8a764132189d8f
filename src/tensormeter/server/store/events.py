"""Events: stored as they come, and what the lifecycle ones say about a run."""

import hashlib
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Final, cast

from tensormeter.otlp.batch import Event
from tensormeter.server.store import State
from tensormeter.server.store.canonical import canonical_json

__all__ = ["RUN_END", "RUN_START", "insert_event", "process_state", "run_state"]

RUN_START: Final = "tensormeter.run.start"
RUN_END: Final = "tensormeter.run.end"

_PRECEDENCE: Final[tuple[State, ...]] = ("failed", "crashed", "running", "finished")


def insert_event(connection: sqlite3.Connection, run: int, process: int, event: Event, time: int) -> None:
    """Store one event, unless the process has exactly this one already."""
    body, attributes = canonical_json(event.body), canonical_json(event.attributes)
    digest = hashlib.sha256(f"{body}\0{attributes}".encode()).digest()
    connection.execute(
        "INSERT OR IGNORE INTO event (process, time, name, digest, body, attributes) VALUES (?, ?, ?, ?, ?, ?)",
        (process, time, event.name, digest, body, attributes),
    )
    details = event.body if isinstance(event.body, Mapping) else {}
    if event.name == RUN_START:
        connection.execute("UPDATE process SET started = max(ifnull(started, 0), ?) WHERE id = ?", (time, process))
        config = details.get("config")
        if isinstance(config, Mapping) and config:
            connection.execute(
                "UPDATE run SET config = ?, config_time = ? WHERE id = ? AND config_time <= ?",
                (canonical_json(config), time, run, time),
            )
    elif event.name == RUN_END:
        state = details.get("state", "finished")
        connection.execute(
            "UPDATE process SET ended = ?, end_state = ? WHERE id = ? AND ifnull(ended, 0) <= ?",
            (time, state if state in ("finished", "crashed") else "failed", process, time),
        )


def process_state(started: int | None, ended: int | None, end_state: str | None) -> State | None:
    """The state of a process from the times of its latest start and end; None if it had neither."""
    if ended is not None and ended >= (started or 0):
        return cast("State", end_state)
    return None if started is None else "running"


def run_state(states: Iterable[State | None]) -> State:
    """The state of a run from those of its processes; a process without any says nothing."""
    known = {state for state in states if state is not None}
    for state in _PRECEDENCE:
        if state in known:
            return state
    return "running"
