"""Events and images in the SQLite file."""

import hashlib
import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from tensormeter.conventions.media_types import is_of_type
from tensormeter.conventions.semconv import ALERT_EVENT, RUN_HEARTBEAT
from tensormeter.otlp.batch import Event
from tensormeter.server.store.models.errors import MAX_ANSWER_TEXT, DamagedError
from tensormeter.server.store.models.event_query import EventQuery
from tensormeter.server.store.models.runs import EventPage, RunRef, StoredEvent
from tensormeter.server.store.rules.events import DIGEST, key_and_step, prepare_event, stored_event
from tensormeter.server.store.sqlite.integrity.damage import skip_damaged
from tensormeter.server.store.sqlite.integrity.seals import PROCESS, checksum, verify
from tensormeter.server.store.sqlite.tables.run_state import apply_event

__all__ = ["SEALED", "insert_event", "last_event", "names_media", "read_alerts", "read_events", "read_media"]

SEALED: Final = "run, process, time, name, key, step, digest, body, attributes, record"
"""Event columns covered by the seal."""


_READ: Final = (
    "event.id, event.run, event.process, event.time, event.name, event.key, event.step, event.digest, event.body,"
    " event.attributes, event.record, event.seal, process.process"
)


def insert_event(
    connection: sqlite3.Connection,
    run: int,
    process: int,
    event: Event,
    time: int,
    *,
    changed: set[int],
    first: bool = True,
) -> str | None:
    """Store an event unless the process already has an equal one. Return the reason if the event is refused, or None.

    Heartbeats only update the run's last arrival and the process's losses. A run that needs `refresh_run` is added to
    `changed`. `first` is False if the process is a rank other than the first.
    """
    prepared = prepare_event(event)
    if isinstance(prepared, str):
        return prepared
    if apply_event(connection, run, process, event, time, first=first):
        changed.add(run)
    if event.name == RUN_HEARTBEAT:
        return None
    columns = (
        *(run, process, time, event.name, *key_and_step(event), prepared.digest),
        *(prepared.body, prepared.attributes, prepared.record),
    )
    connection.execute(
        f"INSERT OR IGNORE INTO event ({SEALED}, seal) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*columns, checksum(*columns)),
    )
    connection.executemany(
        "INSERT OR IGNORE INTO media (run, digest, content_type, data) VALUES (?, ?, ?, ?)",
        [(run, image.digest, image.content_type, image.data) for image in prepared.images],
    )
    return None


def read_events(connection: sqlite3.Connection, run: int, query: EventQuery) -> EventPage:
    """Read events of a run; see `Store.events`."""
    condition = "event.run = ?"
    parameters: list[Any] = [run]
    if query.name is not None and query.name.endswith("*"):
        condition += " AND substr(name, 1, ?) = ?"
        parameters += [len(query.name) - 1, query.name[:-1]]
    elif query.name is not None:
        condition += " AND name = ?"
        parameters.append(query.name)
    for column, operator, value in (("key", "=", query.key), ("time", ">=", query.start), ("time", "<", query.stop)):
        if value is not None:
            condition += f" AND {column} {operator} ?"
            parameters.append(value)
    if query.before is not None:
        condition += " AND (time, event.id) < (?, ?)"
        parameters += query.before
    rows = connection.execute(
        f"SELECT {_READ} FROM event LEFT JOIN process ON process.id = event.process WHERE {condition}"
        " ORDER BY time DESC, event.id DESC LIMIT ?",
        (*parameters, query.limit + 1),
    )
    events: list[StoredEvent] = []
    processes: set[int] = set()
    size, more = 0, False
    for row in rows:
        event = _sealed_event(row, query.max_body)
        size += len(row[9]) + (event.size if event.body is not None else 0)
        if len(events) == query.limit or (events and size > MAX_ANSWER_TEXT):
            more = True
            break
        processes.add(row[2])
        events.append(event)
    for process in processes:
        process_row = connection.execute(f"SELECT {PROCESS.selection} FROM process WHERE id = ?", (process,)).fetchone()
        PROCESS.verify(process_row, f"the row of process {process_row[2]!r} of run {run}")
    return EventPage(events, more=more)


def read_alerts(
    connection: sqlite3.Connection, after: int, limit: int, damaged: list[str]
) -> list[tuple[RunRef, StoredEvent]]:
    """Read alerts; see `Store.alerts`. Messages about damaged alerts are added to `damaged`."""
    rows = connection.execute(
        f"SELECT run_id, project, {_READ} FROM event JOIN run ON run.id = event.run LEFT JOIN process ON process.id = event.process"
        " WHERE event.id > ? AND event.name = ? AND NOT deleted ORDER BY event.id LIMIT ?",
        (after, ALERT_EVENT, limit),
    )
    alerts = []
    for row in rows:
        with skip_damaged(connection, damaged):
            alerts.append((RunRef(row[0], row[1]), _sealed_event(row[2:])))
    return alerts


def read_media(connection: sqlite3.Connection, run: int, digest: str) -> tuple[str, bytes] | None:
    """Return the content type and bytes of an image from a run; None if the run has no such image."""
    row = connection.execute(
        "SELECT content_type, data FROM media WHERE run = ? AND digest = ?", (run, digest)
    ).fetchone()
    if row is None:
        return None
    content_type, data = row
    if hashlib.sha256(data).hexdigest() != digest or not is_of_type(data, content_type):
        raise DamagedError(f"media {digest} of run {run}: its bytes have changed since they were stored")
    return content_type, data


def names_media(connection: sqlite3.Connection, run: int, digest: str) -> bool:
    """Return whether any event of a run refers to an image. Reads the bodies of all events of the run."""
    if not DIGEST.fullmatch(digest):
        return False
    reference = f'"digest":"{digest}"'
    query = "SELECT 1 FROM event WHERE run = ? AND instr(body, ?) LIMIT 1"
    return connection.execute(query, (run, reference)).fetchone() is not None


def last_event(connection: sqlite3.Connection) -> int:
    """Return the highest event ID."""
    row = connection.execute("SELECT ifnull(max(id), 0) FROM event").fetchone()
    return int(row[0])


def _sealed_event(row: Sequence[Any], max_body: int | None = None) -> StoredEvent:
    """Create an event from the columns `_READ`, with `max_body` as in `EventQuery`. Raises DamagedError."""
    number, run, process, time, name, key, step, digest, body, attributes, record, seal, process_name = row
    columns = run, process, time, name, key, step, digest, body, attributes, record
    verify(f"event {number} of run {run}", seal, *columns)
    if process_name is None:
        raise DamagedError(f"event {number} of run {run}: its process {process} is missing")
    return stored_event((number, time, name, step, process_name, attributes, body, record), max_body)
