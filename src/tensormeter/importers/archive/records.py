"""Conversion of rows of `events` and `logs` to log records, with the bytes of media."""

from collections.abc import Callable, Mapping
from typing import Any

from tensormeter.archive.layout import references_in
from tensormeter.conventions.semconv import LOG_STREAM
from tensormeter.importers.archive.folder import ArchiveFolder
from tensormeter.importers.archive.json_columns import parse_object, parse_value
from tensormeter.importers.registry import SourceError
from tensormeter.otlp.batch import Event, Scope

__all__ = ["event_of", "line_of"]

Row = Mapping[str, Any]
"""A row, as a mapping from columns to Python values, but with times as integers."""


def event_of(row: Row, folder: ArchiveFolder, report: Callable[[str], None]) -> tuple[Event, int]:
    """Return the event of a row, and the approximate number of its bytes.

    Args:
        row: Row of `events`.
        folder: Archive with the media files.
        report: Function that receives messages about media files that are missing or damaged.

    Raises:
        SourceError: The row is invalid.
    """
    body = parse_value(row["body"])
    size = len(row["body"] or "")
    for reference in references_in(body):
        try:
            data = folder.media(reference["digest"], reference["content_type"])
        except SourceError as error:
            report(str(error))
            continue
        if data is not None:
            reference["data"] = data
            del reference["digest"]
            reference.pop("size", None)
            size += len(data)
        elif "size" in reference:
            report(f"{folder.path}: media file {reference['digest']} is missing; event {row['name']} keeps its digest")
    return _record(row, row["name"] or "", body, parse_object(row["attributes"])), size


def line_of(row: Row) -> tuple[Event, int]:
    """Return the log record of a row of `logs`, and the approximate number of its bytes. Raises SourceError."""
    text = row["text"] or ""
    attributes = parse_object(row["attributes"])
    if row["stream"] is not None:
        attributes[LOG_STREAM] = row["stream"]
    return _record(row, "", parse_value(text) if row["json"] else text, attributes), len(text)


def _record(row: Row, name: str, body: Any, attributes: dict[str, Any]) -> Event:
    scope = parse_object(row["scope"])
    of_scope = scope.get("attributes")
    record = Event(
        name,
        row["time"],
        body,
        attributes,
        severity_number=row["severity_number"] or 0,
        severity_text=row["severity_text"] or "",
        trace_id=row["trace_id"] or "",
        span_id=row["span_id"] or "",
        flags=row["flags"] or 0,
        observed_time=row["observed_time"] or 0,
        scope=Scope(
            str(scope.get("name", "")),
            str(scope.get("version", "")),
            attributes=of_scope if isinstance(of_scope, dict) else {},
        ),
    )
    try:
        bytes.fromhex(record.trace_id), bytes.fromhex(record.span_id)
    except ValueError:
        raise SourceError(f"event {name!r}: the trace or span ID is not hexadecimal") from None
    if not 0 <= record.flags < 1 << 32 or not 0 < record.time < 1 << 63:
        raise SourceError(f"event {name!r}: the time or the flags are out of range")
    return record
