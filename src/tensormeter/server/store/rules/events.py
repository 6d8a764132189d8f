"""Events: stored as they come, without the images in them, which have a table of their own."""

import hashlib
import json
import re
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
from tensormeter.conventions.semconv import MEDIA_KEY, RUN_CONFIG, RUN_START, STEP_METRIC, TABLE_EVENT, TEXT_EVENT
from tensormeter.otlp.batch import Event
from tensormeter.server.store.models.canonical_json import canonical_json, json_value
from tensormeter.server.store.models.runs import StoredEvent
from tensormeter.server.store.rules.media import Media, MediaError, take_media
from tensormeter.server.store.rules.resource_identity import MAX_NAME

__all__ = ["PreparedEvent", "key_and_step", "prepare_event", "record_of", "refusal", "stored_event", "trim_config"]


_LIMITS: Final = {
    TEXT_EVENT: ("text", TEXT_BYTES + ENVELOPE_BYTES),
    # A cell that JSON has no number for stands in quotes here: what passes the client must pass.
    TABLE_EVENT: ("table", TABLE_BYTES + 2 * TABLE_CELLS + ENVELOPE_BYTES),
}
"""What an event of a name is called, and its largest size as JSON, without images; EVENT_BYTES for the others."""

DIGEST: Final = re.compile("[0-9a-f]{64}")

_LONGEST_KEY: Final = 100
"""Characters of a key that a reason names."""

_MOST_NAMED: Final = 3


_IDENTITY: Final = ("severity_number", "severity_text", "trace_id", "span_id")
"""Fields that tell records apart which have the same time, name, body and attributes."""


@dataclass(frozen=True)
class PreparedEvent:
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


def prepare_event(event: Event) -> PreparedEvent | str:
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
    return PreparedEvent(body, attributes, record, hashlib.sha256(content.encode()).digest(), images)


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
    key, step = attributes.get(MEDIA_KEY), attributes.get(STEP_METRIC)
    return key if isinstance(key, str) else None, step if isinstance(step, int) else None


def refusal(event: Event, moment: int) -> str | None:
    """Why an event at this time cannot be stored, whatever it says; None if it can."""
    if moment >= 1 << 63:
        return "time is above 2^63 - 1 ns"
    if len(event.name) > MAX_NAME:
        return f"event name is longer than {MAX_NAME} characters"
    return None
