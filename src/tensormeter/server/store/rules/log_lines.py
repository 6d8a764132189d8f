"""Rules for log lines: which records are lines, their stored form, and the limit per run."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from tensormeter.conventions.limits import EVENT_BYTES, too_large
from tensormeter.conventions.semconv import LOG_STREAM
from tensormeter.otlp.batch import Event
from tensormeter.server.store.models.canonical_json import canonical_json
from tensormeter.server.store.models.log_lines import LogLine, Stream
from tensormeter.server.store.rules.events import IDENTITY, record_of

__all__ = ["LOG_LIMIT", "STREAMS", "LogLimit", "PreparedLine", "is_line", "prepare_line", "stored_line"]

STREAMS: Final[tuple[Stream | None, ...]] = (None, "stdout", "stderr")
"""Streams by the number under which they are stored."""

_LEVELS: Final = 24


@dataclass(frozen=True)
class LogLimit:
    """The log lines that a store keeps per run. If there are more, the oldest are evicted.

    Attributes:
        lines: Maximum number of lines.
        size: Maximum bytes of their texts, attributes and other fields.
    """

    lines: int = 2_000_000
    size: int = 512 << 20

    def excess(self, lines: int, size: int) -> tuple[int, int]:
        """Return the number of lines and bytes to evict, or zeros.

        Eviction leaves room for some lines, so that it is not needed again with the next request.
        """
        if lines <= self.lines and size <= self.size:
            return 0, 0
        return max(0, lines - self.lines * 31 // 32), max(0, size - self.size * 31 // 32)


LOG_LIMIT: Final = LogLimit()


@dataclass(frozen=True, slots=True)
class PreparedLine:
    """A log line in its stored form.

    Attributes:
        digest: 63-bit number that distinguishes the line from others of the same run and time.
        severity: Severity number, or 0.
        stream: Index in `STREAMS`.
        attributes: Canonical JSON without the stream, or "".
        record: Remaining fields of the log record as canonical JSON, or ""; see `LogLine`.
        size: Bytes of text, attributes and record.
    """

    digest: int
    severity: int
    stream: int
    text: str
    attributes: str
    record: str
    size: int


def is_line(event: Event) -> bool:
    """Return whether a log record is a log line. All other records are events."""
    return not event.name


def prepare_line(event: Event, process: str) -> PreparedLine | str:
    """Return the stored form of a line, or the reason why the line is refused.

    Args:
        event: Log record without an event name.
        process: ID of the process that sent the record.
    """
    body, attributes = event.body, event.attributes
    fields = record_of(event)
    severity = fields.pop("severity_number", 0)
    if isinstance(body, str):
        text = body
    else:
        text, fields["json"] = canonical_json(body), True
    stream = 0
    name = attributes.get(LOG_STREAM)
    if name in ("stdout", "stderr"):
        stream = STREAMS.index(name)
        attributes = {key: value for key, value in attributes.items() if key != LOG_STREAM}
    attributes_json = canonical_json(attributes) if attributes else ""
    record = canonical_json(fields) if fields else ""
    size = sum(
        len(part) if part.isascii() else len(part.encode("utf-8", "replace"))
        for part in (text, attributes_json, record)
    )
    if size > EVENT_BYTES:
        return too_large(size, EVENT_BYTES, "log record", "send it in parts")
    # A retry through a Collector may have another observed time, so it does not distinguish lines; see `prepare_event`.
    ids = "\0".join(str(fields[name]) for name in IDENTITY if name in fields)
    identity = f"{process}\0{severity}\0{stream}\0{ids}\0{attributes_json}\0{text}".encode("utf-8", "replace")
    digest = int.from_bytes(hashlib.blake2b(identity, digest_size=8).digest(), "big") >> 1
    return PreparedLine(digest, min(max(severity, 0), _LEVELS), stream, text, attributes_json, record, size)


def stored_line(row: Sequence[Any]) -> LogLine:
    """Create a line from the columns id, time, process, severity, stream, text, size, attributes and record."""
    number, time, process, severity, stream, text, size, attributes, record = row
    return LogLine(
        number,
        time,
        process,
        severity,
        cast("Stream | None", STREAMS[stream]),
        text,
        size,
        size + len(attributes) + len(record),
        json.loads(attributes) if attributes else {},
        json.loads(record) if record else {},
    )
