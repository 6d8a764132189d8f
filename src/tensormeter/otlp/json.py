"""Conversion of OTLP requests from JSON to protobuf (OTLP specification, "JSON Protobuf Encoding").

OTLP encodes ids in hexadecimal, but protobuf's JSON mapping uses base64. This module accepts both encodings, and drops invalid
ids.
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
"""Maximum size of a JSON request in bytes."""

MAX_JSON_ELEMENTS: Final = 500_000
"""Maximum number of opening braces, opening brackets and commas in a JSON request, including those within strings."""

_IDS: Final = {"traceId": 16, "spanId": 8, "trace_id": 16, "span_id": 8}
"""Names of id fields, each with the size of an id in bytes."""


def metrics_from_json(body: bytes) -> bytes:
    """Convert an `ExportMetricsServiceRequest` to protobuf.

    Raises:
        TooManyElementsError: The body exceeds `MAX_JSON_BYTES` or `MAX_JSON_ELEMENTS`.
        EncodingError: The body is not a JSON encoding of this message.
    """
    return _transcode(body, ExportMetricsServiceRequest())


def events_from_json(body: bytes) -> bytes:
    """Convert an `ExportLogsServiceRequest` to protobuf. Raises the same errors as `metrics_from_json`."""
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
    # For values of the wrong type, the parser raises various errors other than ParseError.
    except (json_format.ParseError, EncodingError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise EncodingError(f"not a JSON {name}: {str(error)[:500]}") from None


def _check_size(body: bytes) -> None:
    """Reject a body that would take a long time to parse. No other thread can run while the parser runs."""
    if len(body) > MAX_JSON_BYTES:
        raise TooManyElementsError(
            f"the request has more than {MAX_JSON_BYTES} bytes of JSON; send smaller batches, or use protobuf"
        )
    if sum(map(body.count, (b"{", b"[", b","))) > MAX_JSON_ELEMENTS:
        raise TooManyElementsError(
            f"the request has more than {MAX_JSON_ELEMENTS} braces, brackets and commas; send smaller batches, or "
            "use protobuf"
        )


def _with_base64_ids(item: dict[str, Any]) -> dict[str, Any]:
    for key, size in _IDS.items():
        if key in item:
            identity = _id(item.pop(key), size)
            if identity is not None:
                item[key] = base64.b64encode(identity).decode()
    return item


def _id(text: object, size: int) -> bytes | None:
    """Decode an id, or return None if it is invalid. The length of the text distinguishes hexadecimal from base64."""
    if not isinstance(text, str):
        return None
    try:
        identity = bytes.fromhex(text) if len(text) == 2 * size else base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return identity if len(identity) == size else None
