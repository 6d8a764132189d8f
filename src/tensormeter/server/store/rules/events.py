"""Events: stored as they come, without the images in them, which have a table of their own."""

import hashlib
import json
import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from tensormeter.conventions.fitting import fit
from tensormeter.conventions.limits import (
    CONFIG_BYTES,
    ENVELOPE_BYTES,
    EVENT_BYTES,
    TABLE_BYTES,
    TABLE_CELLS,
    TEXT_BYTES,
    too_large,
)
from tensormeter.otlp.batch import Event
from tensormeter.server.store import EventPage, RunRef, StoredEvent
from tensormeter.server.store.models.canonical_json import canonical_json, json_value
from tensormeter.server.store.models.errors import MAX_ANSWER_TEXT, DamagedError
from tensormeter.server.store.rules.lifecycle import HEARTBEAT, RUN_CONFIG, RUN_START, apply_event
from tensormeter.server.store.rules.media import Media, MediaError, is_of_type, take_media
from tensormeter.server.store.sqlite.integrity.damage import leaving_out
from tensormeter.server.store.sqlite.integrity.seals import PROCESS, checksum, verify

__all__ = [
    "ALERT",
    "Prepared",
    "insert_event",
    "key_and_step",
    "last_event",
    "names_media",
    "prepare_event",
    "read_alerts",
    "read_events",
    "read_media",
    "record_of",
    "stored_event",
    "trim_config",
]

ALERT: Final = "tensormeter.alert"

_LIMITS: Final = {
    "tensormeter.text": ("text", TEXT_BYTES + ENVELOPE_BYTES),
    # A cell that JSON has no number for stands in quotes here: what passes the client must pass.
    "tensormeter.table": ("table", TABLE_BYTES + 2 * TABLE_CELLS + ENVELOPE_BYTES),
}
"""What an event of a name is called, and its largest size as JSON, without images; EVENT_BYTES for the others."""

_DIGEST: Final = re.compile("[0-9a-f]{64}")

_LONGEST_KEY: Final = 100
"""Characters of a key that a reason names."""

_MOST_NAMED: Final = 3

SEALED: Final = "run, process, time, name, key, step, digest, body, attributes, record"
"""Columns of an event that its seal covers."""

_READ: Final = (
    "event.id, event.run, event.process, event.time, event.name, event.key, event.step, event.digest, event.body,"
    " event.attributes, event.record, event.seal, process.process"
)

_IDENTITY: Final = ("severity_number", "severity_text", "trace_id", "span_id")
"""Fields that tell records apart which have the same time, name, body and attributes."""


@dataclass(frozen=True)
class Prepared:
    """An event as a store keeps it.

    Attributes:
        body: Canonical JSON, without images.
        attributes: Canonical JSON.
        record: The other fields of the log record, as canonical JSON; see `record_of`.
        digest: SHA-256 of what tells the event from others of its name and time.
        images: What was in the body.
    """

    body: str
    attributes: str
    record: str
    digest: bytes
    images: Sequence[Media]


def prepare_event(event: Event) -> Prepared | str:
    """An event as it is stored, or why it is refused."""
    try:
        kept, images = take_media(event.body)
    except MediaError as error:
        return str(error)
    body, attributes, fields = canonical_json(kept), canonical_json(event.attributes), record_of(event)
    record = canonical_json(fields)
    what, limit = _LIMITS.get(event.name, ("event", EVENT_BYTES))
    size = sum(len(text) if text.isascii() else len(text.encode()) for text in (body, attributes, record))
    if size > limit:
        key, _ = key_and_step(event)
        return too_large(size, limit, f"{what} {(key or event.name)[:_LONGEST_KEY]!r}", "send it in parts")
    content = f"{body}\0{attributes}"
    told_apart = {name: fields[name] for name in _IDENTITY if name in fields}
    if told_apart:  # otherwise the digest is that of versions that stored body and attributes only
        content += f"\0{canonical_json(told_apart)}"
    return Prepared(body, attributes, record, hashlib.sha256(content.encode()).digest(), images)


def trim_config(event: Event) -> tuple[Event, str | None]:
    """An event of a run whose configuration fits the limit; equal events become equal ones.

    Returns:
        The event, and why values are left out of its configuration; None if none is.
    """
    details = event.body if isinstance(event.body, Mapping) else {}
    config = details.get("config")
    if event.name not in (RUN_START, RUN_CONFIG) or not isinstance(config, Mapping):
        return event, None
    kept, left_out = fit(json_value(config), CONFIG_BYTES)
    if not left_out:
        return event, None
    names = ", ".join(value.name[:_LONGEST_KEY] for value in left_out[:_MOST_NAMED])
    more = ", ..." if len(left_out) > _MOST_NAMED else ""
    reason = f"the configuration is larger than {CONFIG_BYTES >> 20} MiB as JSON: left out {names}{more}"
    return replace(event, body={**details, "config": kept}), reason


def record_of(event: Event) -> dict[str, Any]:
    """The fields of a log record next to name, time, body and attributes; only those that it has."""
    scope = event.scope
    about_scope = {"name": scope.name, "version": scope.version, "attributes": dict(scope.attributes)}
    fields = {
        "severity_number": event.severity_number,
        "severity_text": event.severity_text,
        "trace_id": event.trace_id,
        "span_id": event.span_id,
        "flags": event.flags,
        "observed_time": 0 if event.observed_time == event.time else event.observed_time,
        "scope": {name: value for name, value in about_scope.items() if value},
    }
    return {name: value for name, value in fields.items() if value}


def insert_event(
    connection: sqlite3.Connection, run: int, process: int, event: Event, time: int, *, changed: set[int]
) -> str | None:
    """Store one event, unless the process has exactly this one already; returns why it is refused, or None.

    A heartbeat leaves no trace but that something has arrived for the run, and what its process has dropped.
    The run is added to `changed` if it needs `refresh_run`.
    """
    prepared = prepare_event(event)
    if isinstance(prepared, str):
        return prepared
    if apply_event(connection, run, process, event, time):
        changed.add(run)
    if event.name == HEARTBEAT:
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


def read_events(
    connection: sqlite3.Connection,
    run: int,
    *,
    name: str | None,
    key: str | None,
    start: int | None,
    stop: int | None,
    limit: int,
    before: tuple[int, int] | None,
    max_body: int | None,
) -> EventPage:
    """Events of a run; see `Store.events`."""
    condition = "event.run = ?"
    parameters: list[Any] = [run]
    if name is not None and name.endswith("*"):
        condition += " AND substr(name, 1, ?) = ?"
        parameters += [len(name) - 1, name[:-1]]
    elif name is not None:
        condition += " AND name = ?"
        parameters.append(name)
    for column, operator, value in (("key", "=", key), ("time", ">=", start), ("time", "<", stop)):
        if value is not None:
            condition += f" AND {column} {operator} ?"
            parameters.append(value)
    if before is not None:
        condition += " AND (time, event.id) < (?, ?)"
        parameters += before
    rows = connection.execute(
        f"SELECT {_READ} FROM event LEFT JOIN process ON process.id = event.process WHERE {condition}"
        " ORDER BY time DESC, event.id DESC LIMIT ?",
        (*parameters, limit + 1),
    )
    events: list[StoredEvent] = []
    processes: set[int] = set()
    size, more = 0, False
    for row in rows:
        event = _sealed_event(row, max_body)
        size += len(row[9]) + (event.size if event.body is not None else 0)
        if len(events) == limit or (events and size > MAX_ANSWER_TEXT):
            more = True
            break
        processes.add(row[2])
        events.append(event)
    for process in processes:
        about = connection.execute(f"SELECT {PROCESS.selection} FROM process WHERE id = ?", (process,)).fetchone()
        PROCESS.verify(about, f"the row of process {about[2]!r} of run {run}")
    return EventPage(events, more=more)


def read_alerts(
    connection: sqlite3.Connection, after: int, limit: int, damaged: list[str]
) -> list[tuple[RunRef, StoredEvent]]:
    """Alerts of all runs with greater ids, the oldest first. What is damaged is left out, and a text about it appended."""
    rows = connection.execute(
        f"SELECT run_id, project, {_READ} FROM event JOIN run ON run.id = event.run LEFT JOIN process ON process.id = event.process"
        " WHERE event.id > ? AND event.name = ? AND NOT deleted ORDER BY event.id LIMIT ?",
        (after, ALERT, limit),
    )
    found = []
    for row in rows:
        with leaving_out(connection, damaged):
            found.append((RunRef(row[0], row[1]), _sealed_event(row[2:])))
    return found


def read_media(connection: sqlite3.Connection, run: int, digest: str) -> tuple[str, bytes] | None:
    """Type and bytes of an image of a run."""
    row = connection.execute(
        "SELECT content_type, data FROM media WHERE run = ? AND digest = ?", (run, digest)
    ).fetchone()
    if row is None:
        return None
    content_type, data = row
    if hashlib.sha256(data).hexdigest() != digest or not is_of_type(data, content_type):
        raise DamagedError(f"media {digest} of run {run}: its bytes are not those that were stored")
    return content_type, data


def names_media(connection: sqlite3.Connection, run: int, digest: str) -> bool:
    """Whether an event of a run has a reference to an image. Reads the bodies of all its events."""
    if not _DIGEST.fullmatch(digest):
        return False
    reference = f'"digest":"{digest}"'
    query = "SELECT 1 FROM event WHERE run = ? AND instr(body, ?) LIMIT 1"
    return connection.execute(query, (run, reference)).fetchone() is not None


def last_event(connection: sqlite3.Connection) -> int:
    """The highest id of an event."""
    row = connection.execute("SELECT ifnull(max(id), 0) FROM event").fetchone()
    return int(row[0])


def _sealed_event(row: Sequence[Any], max_body: int | None = None) -> StoredEvent:
    """An event from the columns `_READ`; `max_body` as for `Store.events`. Raises DamagedError."""
    number, run, process, time, name, key, step, digest, body, attributes, record, seal, process_name = row
    columns = run, process, time, name, key, step, digest, body, attributes, record
    verify(f"event {number} of run {run}", seal, *columns)
    if process_name is None:
        raise DamagedError(f"event {number} of run {run}: its process {process} cannot be found")
    return stored_event((number, time, name, step, process_name, attributes, body, record), max_body)


def stored_event(row: Sequence[Any], max_body: int | None = None) -> StoredEvent:
    """An event from its columns: id, time, name, step, process, attributes, body, record.

    Args:
        row: The columns.
        max_body: As for `Store.events`.
    """
    number, time, name, step, process, attributes, body, record = row
    size = len(body or "")
    shown = body if max_body is None or size <= max_body else "null"
    found, content, fields = (json.loads(text or "{}") for text in (attributes, shown, record))
    return StoredEvent(number, time, name, step, process, found, content, fields, size)


def key_and_step(event: Event) -> tuple[str | None, int | None]:
    """What an event is filtered by."""
    attributes = event.attributes
    key, step = attributes.get("tensormeter.key"), attributes.get("tensormeter.step")
    return key if isinstance(key, str) else None, step if isinstance(step, int) else None
