"""OTLP as JSON lines (the OTLP file format), with one export request per line.

The module uses protobuf's JSON mapping. OTLP differs from that mapping in two ways: trace and span ids are hexadecimal, and
enums are numbers (OTLP specification, "JSON Protobuf Encoding"). The functions are thread-safe and do not block.
"""

import base64
import json
from collections.abc import Callable
from typing import Any, Final, Literal

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tensormeter.errors import EncodingError, join_choices
from tensormeter.otlp.document import parse_document

__all__ = ["decode_line", "encode_line"]

Signal = Literal["metrics", "logs"]

_MESSAGES: Final = {"metrics": ExportMetricsServiceRequest, "logs": ExportLogsServiceRequest}
_ROOTS: Final[dict[str, Signal]] = {"resourceMetrics": "metrics", "resourceLogs": "logs"}
_IDS: Final = frozenset({"traceId", "spanId", "parentSpanId"})


def encode_line(signal: Signal, body: bytes) -> bytes:
    """Convert a protobuf export request to one line of JSON, including the line break. Equal requests give equal lines.

    Raises:
        EncodingError: The bytes are not a valid export request for this signal.
    """
    message = _MESSAGES[signal]()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise EncodingError(f"not a protobuf {type(message).__name__}: {error}") from None
    document = MessageToDict(message, use_integers_for_enums=True)
    _change_ids(document, lambda text: base64.b64decode(text).hex())
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def decode_line(line: bytes) -> tuple[Signal, bytes, int]:
    """Convert one line of the OTLP file format to a protobuf export request.

    Returns:
        Signal of the request, its protobuf bytes, and its number of data points or log records.

    Raises:
        EncodingError: The line is not OTLP, or contains neither metrics nor logs.
    """
    document = parse_document(line)
    if not isinstance(document, dict) or (signal := _signal(document)) is None:
        raise EncodingError(f"expected a JSON object with the key {join_choices(*_ROOTS)}")
    message = _MESSAGES[signal]()
    try:
        _change_ids(document, lambda text: base64.b64encode(bytes.fromhex(text)).decode())
        ParseDict(document, message, ignore_unknown_fields=True)
    except (ParseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise EncodingError(f"invalid OTLP {signal}: {error}") from None
    return signal, message.SerializeToString(), _items(message)


def _signal(document: dict[str, Any]) -> Signal | None:
    return next((signal for root, signal in _ROOTS.items() if root in document), None)


def _items(message: ExportMetricsServiceRequest | ExportLogsServiceRequest) -> int:
    if isinstance(message, ExportLogsServiceRequest):
        return sum(len(scope.log_records) for resource in message.resource_logs for scope in resource.scope_logs)
    return sum(
        len(getattr(metric, kind).data_points)
        for resource in message.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if (kind := metric.WhichOneof("data"))
    )


def _change_ids(document: Any, change: Callable[[str], str]) -> None:
    """Convert all ids in place. An attribute's name is never a JSON key, because attributes are lists of key-value pairs."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key in _IDS and isinstance(value, str):
                document[key] = change(value)
            else:
                _change_ids(value, change)
    elif isinstance(document, list):
        for item in document:
            _change_ids(item, change)
