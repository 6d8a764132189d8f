"""OTLP in JSON to OTLP in protobuf (OTLP specification, "JSON Protobuf Encoding").

What differs from protobuf's own JSON mapping: ids are hexadecimal, not base64. Both are taken; an id that is neither is left out.
"""

import base64
from typing import Any, Final

from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tensormeter.errors import EncodingError
from tensormeter.otlp.document import parse_document
from tensormeter.otlp.elements import TooManyElementsError

__all__ = ["MAX_JSON_BYTES", "MAX_JSON_ELEMENTS", "events_from_json", "metrics_from_json"]

MAX_JSON_BYTES: Final = 16 << 20
"""Bytes of one request in JSON."""

MAX_JSON_ELEMENTS: Final = 500_000
"""Opening braces, opening brackets and commas of one request in JSON, those in texts included: each begins a value."""

_IDS: Final = {"traceId": 16, "spanId": 8, "trace_id": 16, "span_id": 8}
"""Names of ids, and the bytes that each has."""


def metrics_from_json(body: bytes) -> bytes:
    """An `ExportMetricsServiceRequest` in protobuf.

    Raises:
        TooManyElementsError: The body is larger than `MAX_JSON_BYTES`, or has more than `MAX_JSON_ELEMENTS`.
        EncodingError: The bytes are not such a message in JSON.
    """
    return _transcode(body, ExportMetricsServiceRequest())


def events_from_json(body: bytes) -> bytes:
    """An `ExportLogsServiceRequest` in protobuf; errors as for `metrics_from_json`."""
    return _transcode(body, ExportLogsServiceRequest())


def _transcode(body: bytes, request: ExportMetricsServiceRequest | ExportLogsServiceRequest) -> bytes:
    name = type(request).__name__
    _check_size(body)
    try:
        document = parse_document(body, _with_base64_ids) if body.strip() else {}
        if not isinstance(document, dict):
            raise EncodingError("expected an object")
        json_format.ParseDict(document, request, ignore_unknown_fields=True)
        return request.SerializeToString()
    # Beside its own error the parser raises whatever a value of the wrong type does to it.
    except (json_format.ParseError, EncodingError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise EncodingError(f"not a JSON {name}: {str(error)[:500]}") from None


def _check_size(body: bytes) -> None:
    """Refuse what would hold the interpreter for long: the parser lets no other thread run."""
    if len(body) > MAX_JSON_BYTES:
        raise TooManyElementsError(
            f"the request holds more than {MAX_JSON_BYTES} bytes of JSON; send smaller batches, or protobuf"
        )
    if sum(map(body.count, (b"{", b"[", b","))) > MAX_JSON_ELEMENTS:
        raise TooManyElementsError(
            f"the request holds more than {MAX_JSON_ELEMENTS} braces, brackets and commas; send smaller batches, or protobuf"
        )


def _with_base64_ids(item: dict[str, Any]) -> dict[str, Any]:
    for key, size in _IDS.items():
        if key in item:
            found = _id(item.pop(key), size)
            if found is not None:
                item[key] = base64.b64encode(found).decode()
    return item


def _id(text: object, size: int) -> bytes | None:
    """The bytes of an id, or None if it is not one: the two forms differ in length."""
    if not isinstance(text, str):
        return None
    try:
        found = bytes.fromhex(text) if len(text) == 2 * size else base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return found if len(found) == size else None
