"""Rules for events: limits, media, digests and the stored form."""

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
from tensormeter.conventions.semconv import (
    FIGURE_EVENT,
    HTML_EVENT,
    MEDIA_KEY,
    RUN_CONFIG,
    RUN_START,
    STEP_METRIC,
    TABLE_EVENT,
    TEXT_EVENT,
)
from tensormeter.otlp.batch import Event
from tensormeter.server.store.models.canonical_json import canonical_json, json_value
from tensormeter.server.store.models.runs import StoredEvent
from tensormeter.server.store.rules.media import Media, MediaError, take_media
from tensormeter.server.store.rules.resource_identity import MAX_NAME

__all__ = [
    "IDENTITY",
    "PreparedEvent",
    "key_and_step",
    "prepare_event",
    "record_of",
    "refusal",
    "stored_event",
    "trim_config",
]


_LIMITS: Final = {
    TEXT_EVENT: ("text", TEXT_BYTES + ENVELOPE_BYTES),
    HTML_EVENT: ("html", TEXT_BYTES + ENVELOPE_BYTES),
    FIGURE_EVENT: ("figure", TEXT_BYTES + ENVELOPE_BYTES),
    # JSON quotes cells such as NaN. A table that passes the client's check must also pass this one.
    TABLE_EVENT: ("table", TABLE_BYTES + 2 * TABLE_CELLS + ENVELOPE_BYTES),
}
"""Noun for an event, and its maximum bytes as JSON without media, by event name. The default is `EVENT_BYTES`."""

DIGEST: Final = re.compile("[0-9a-f]{64}")

_LONGEST_KEY: Final = 100
"""Maximum number of characters to quote from a key in the reason for a refusal."""

_MOST_NAMED: Final = 3


IDENTITY: Final = ("severity_number", "severity_text", "trace_id", "span_id")
"""Fields that distinguish log records with equal time, name, body and attributes."""


@dataclass(frozen=True)
class PreparedEvent:
    """An event in its stored form.

    Attributes:
        body: Canonical JSON, without media.
        attributes: Canonical JSON.
        record: Remaining fields of the log record, as canonical JSON; see `record_of`.
        digest: SHA-256 digest that distinguishes the event from others with the same name and time.
        images: Images, audio clips and videos extracted from the body.
    """

    body: str
    attributes: str
    record: str
    digest: bytes
    images: Sequence[Media]


def prepare_event(event: Event) -> PreparedEvent | str:
    """Return the stored form of an event, or the reason why the event is refused."""
    try:
        content, images = take_media(event.body)
    except MediaError as error:
        return str(error)
    body, attributes, fields = canonical_json(content), canonical_json(event.attributes), record_of(event)
    record = canonical_json(fields)
    noun, limit = _LIMITS.get(event.name, ("event", EVENT_BYTES))
    size = sum(len(text) if text.isascii() else len(text.encode()) for text in (body, attributes, record))
    if size > limit:
        key, _ = key_and_step(event)
        return too_large(size, limit, f"{noun} {(key or event.name)[:_LONGEST_KEY]!r}", "send it in parts")
    identity = f"{body}\0{attributes}"
    fields_of_identity = {name: fields[name] for name in IDENTITY if name in fields}
    if fields_of_identity:  # if they are missing, keep the digest that older versions computed
        identity += f"\0{canonical_json(fields_of_identity)}"
    return PreparedEvent(body, attributes, record, hashlib.sha256(identity.encode()).digest(), images)


def trim_config(event: Event) -> tuple[Event, str | None]:
    """Remove values from an event's config and summary until each fits the size limit. Equal events give equal results.

    Returns:
        The event, and the reason why values were removed; None if none were.
    """
    details = event.body if isinstance(event.body, Mapping) else {}
    reasons = []
    for key, noun in (("config", "configuration"), ("summary", "summary")):
        values = details.get(key)
        if event.name not in (RUN_START, RUN_CONFIG) or not isinstance(values, Mapping):
            continue
        fitting, left_out = fit(json_value(values), CONFIG_BYTES)
        if left_out:
            names = ", ".join(value.name[:_LONGEST_KEY] for value in left_out[:_MOST_NAMED])
            more = ", ..." if len(left_out) > _MOST_NAMED else ""
            reasons.append(f"the {noun} is larger than {CONFIG_BYTES >> 20} MiB as JSON; left out {names}{more}")
            details = {**details, key: fitting}
    return (replace(event, body=details), "; ".join(reasons)) if reasons else (event, None)


def record_of(event: Event) -> dict[str, Any]:
    """Return the non-empty fields of a log record other than name, time, body and attributes."""
    scope = event.scope
    scope_fields = {"name": scope.name, "version": scope.version, "attributes": dict(scope.attributes)}
    fields = {
        "severity_number": event.severity_number,
        "severity_text": event.severity_text,
        "trace_id": event.trace_id,
        "span_id": event.span_id,
        "flags": event.flags,
        "observed_time": 0 if event.observed_time == event.time else event.observed_time,
        "scope": {name: value for name, value in scope_fields.items() if value},
    }
    return {name: value for name, value in fields.items() if value}


def stored_event(row: Sequence[Any], max_body: int | None = None) -> StoredEvent:
    """Create an event from the columns id, time, name, step, process, attributes, body and record.

    Args:
        row: Values of these columns.
        max_body: Maximum number of characters in the body; see `EventQuery`.
    """
    number, time, name, step, process, attributes, body, record = row
    size = len(body or "")
    shown = body if max_body is None or size <= max_body else "null"
    shown_attributes, content, fields = (json.loads(text or "{}") for text in (attributes, shown, record))
    return StoredEvent(number, time, name, step, process, shown_attributes, content, fields, size)


def key_and_step(event: Event) -> tuple[str | None, int | None]:
    """Return an event's key and step, which are stored in separate columns for filtering."""
    attributes = event.attributes
    key, step = attributes.get(MEDIA_KEY), attributes.get(STEP_METRIC)
    return key if isinstance(key, str) else None, step if isinstance(step, int) else None


def refusal(event: Event, moment: int) -> str | None:
    """Return the reason why an event cannot be stored, or None.

    Args:
        event: Event to store.
        moment: Time of the event, or of its arrival if the event has no time, in nanoseconds since the Unix epoch.
    """
    if moment >= 1 << 63:
        return "time is above 2^63 - 1 ns"
    if len(event.name) > MAX_NAME:
        return f"event name is longer than {MAX_NAME} characters"
    return None
