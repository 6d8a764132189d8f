"""Parser for HTTP responses from OTLP receivers: whether a request was accepted, and how many items were refused.

The protocol requires a response message, but many receivers send none: Prometheus, Mimir, VictoriaMetrics and
VictoriaLogs return 200 without a body, Loki returns 204, and others return 202, `{}` or `ok`. Any 2xx response
therefore counts as acceptance, unless it clearly does not come from a receiver. Examples of such a response are a
proxy's error page, a login page, and bytes that are neither an OTLP message nor text.
"""

import codecs
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceResponse,
)

from tensormeter.exporter import Accepted, Outcome, Retry, Signal

__all__ = ["PROTOBUF", "Answer", "read_response"]

PROTOBUF: Final = "application/x-protobuf"
_PROTOBUF_TYPES: Final = (PROTOBUF, "application/protobuf", "application/vnd.google.protobuf")
_PAGE_TYPES: Final = ("text/html", "application/xhtml+xml")
_LONGEST_REASON: Final = 300


@dataclass(frozen=True)
class Answer:
    """A receiver's response.

    Attributes:
        url: URL of the request.
        status: HTTP status of the response.
        phrase: HTTP reason phrase, or "".
        content_type: Content type of the body.
        body: Body of the response.
        retry_after: Delay that the receiver requested, in seconds, or None.
        headers: Headers whose names begin with ``tensormeter-`` or ``accept-encoding``. The names are in lowercase.
    """

    url: str
    status: int
    phrase: str
    content_type: str
    body: bytes
    retry_after: float | None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def reason(self) -> str:
        """URL, status, and the receiver's explanation if it is readable, as text for users."""
        answered = f"{self.url} answered {self.status} {self.phrase}".rstrip()
        explained = _explanation(self._type, self.body)
        return f"{answered}: {explained}" if explained else answered

    def accepted(self, signal: Signal, items: int) -> Outcome:
        """Return the outcome of a 2xx response: `Accepted`, or `Retry` if the response is not from a receiver.

        Args:
            signal: Signal of the request.
            items: Number of points or records in the request.
        """
        answered = f"{self.url} answered {self.status}"
        body = self.body.removeprefix(codecs.BOM_UTF8).strip()
        if not body:
            return Accepted()
        is_page = self._type in _PAGE_TYPES or body[:1] == b"<"
        if self._type in _PROTOBUF_TYPES:  # first, because a message of 60 bytes begins with a line break and "<"
            try:
                return read_response(signal, self.body, items)
            except DecodeError:
                if not is_page and not _is_text(body):
                    return Retry(f"{answered} with a body that is not OTLP; check the endpoint")
        if is_page:
            return Retry(f"{answered} with {self._type or 'a web page'} instead of OTLP; check the endpoint")
        # A body such as "ok" may have any content type, because some servers copy the type of the request.
        with contextlib.suppress(ValueError, RecursionError):
            return _read_json(signal, json.loads(body), items)
        return Accepted()

    @property
    def _type(self) -> str:
        return self.content_type.partition(";")[0].strip().lower()


def read_response(signal: Signal, body: bytes, items: int) -> Accepted:
    """Parse an OTLP response message.

    Args:
        signal: Signal of the request.
        body: Protobuf message.
        items: Number of points or records in the request, which limits the number of refused items.

    Raises:
        DecodeError: The body is not an OTLP response message.
    """
    if signal == "metrics":
        metrics = ExportMetricsServiceResponse.FromString(body).partial_success
        return _accepted(metrics.rejected_data_points, metrics.error_message, items)
    logs = ExportLogsServiceResponse.FromString(body).partial_success
    return _accepted(logs.rejected_log_records, logs.error_message, items)


def _read_json(signal: Signal, document: Any, items: int) -> Accepted:
    partial = document.get("partialSuccess") if isinstance(document, Mapping) else None
    if not isinstance(partial, Mapping):
        return Accepted()
    rejected = partial.get("rejectedDataPoints" if signal == "metrics" else "rejectedLogRecords") or 0
    try:
        number = int(rejected)  # 64-bit integers are strings in Protobuf JSON
    except (ValueError, TypeError, OverflowError):
        number = 0
    return _accepted(number, str(partial.get("errorMessage") or ""), items)


def _accepted(rejected: int, message: str, items: int) -> Accepted:
    return Accepted(min(max(rejected, 0), items), _readable(message))


def _is_text(body: bytes) -> bool:
    try:
        return body.decode().isprintable()
    except UnicodeDecodeError:
        return False


def _explanation(kind: str, body: bytes) -> str:
    """Return the receiver's error message if it is human-readable, otherwise ""."""
    if kind in _PROTOBUF_TYPES:
        try:
            # The body is a google.rpc.Status. Its class needs another package, but its message has the same field number.
            return _readable(ExportMetricsPartialSuccess.FromString(body).error_message)
        except DecodeError:
            return ""
    if kind == "application/json":
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            return ""
        if isinstance(document, Mapping):
            words = next((document[name] for name in ("message", "error") if isinstance(document.get(name), str)), "")
            return _readable(words)
        return ""
    return _readable(body.decode(errors="replace")) if kind == "text/plain" else ""


def _readable(text: str) -> str:
    """Return the text as one printable line of limited length."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * _LONGEST_REASON])
    line = " ".join(line.split())
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}..."
