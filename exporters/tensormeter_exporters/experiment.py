"""The experiment server, over OTLP/HTTP with protobuf and gzip.

Any OTLP/HTTP receiver understands these requests; the experiment server also understands the header
`Tensormeter-Batch-Id`, by which it knows a request that it has stored before.
"""

import time
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Final

import urllib3
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from tensormeter.exporter import Accepted, ExporterConfig, Outcome, Rejected, Request, Retry

__all__ = ["ExperimentExporter"]

_CONTENT_TYPE: Final = "application/x-protobuf"
_LONGEST_ANSWER: Final = 1 << 16
_UNAUTHORIZED_DELAY: Final = 60.0

# The request itself is wrong, and will be so the next time.
_PERMANENT: Final = frozenset({400, 409, 413, 415, 422})


class ExperimentExporter:
    """See `tensormeter.exporter.Exporter` for the contract. Redirects are not followed, so the token goes nowhere else."""

    def __init__(self, config: ExporterConfig) -> None:
        self._timeout = config.timeout
        self._url = config.endpoint.rstrip("/")
        self._headers = {
            "Content-Type": _CONTENT_TYPE,
            "Content-Encoding": "gzip",
            "User-Agent": f"tensormeter/{version('tensormeter')}",
        }
        if config.token:
            self._headers["Authorization"] = f"Bearer {config.token}"
        self._pool = urllib3.PoolManager(num_pools=1, maxsize=1, retries=False)

    def export(self, request: Request) -> Outcome:
        deadline = time.monotonic() + self._timeout
        try:
            response = self._pool.request(
                "POST",
                f"{self._url}/v1/{request.signal}",
                body=request.body,
                headers=self._headers | {"Tensormeter-Batch-Id": request.id},
                timeout=urllib3.Timeout(total=self._timeout),
                redirect=False,
                preload_content=False,
            )
            try:
                answer = _read(response, deadline)
            except BaseException:
                response.close()  # with the rest of the answer still to come, the connection is of no use
                raise
            response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            return Retry(f"{self._url}: {_describe(error)}")
        return self._outcome(request, response, answer)

    def shutdown(self) -> None:
        self._pool.clear()

    def _outcome(self, request: Request, response: urllib3.BaseHTTPResponse, answer: bytes) -> Outcome:
        status = response.status
        if status == 200:
            return _accepted(request, response.headers.get("Content-Type", ""), answer)
        reason = f"{self._url} answered {status} {response.reason or ''}".rstrip()
        if status in _PERMANENT:
            return Rejected(reason)
        if status in (401, 403):
            return Retry(f"{reason}; set TENSORMETER_TOKEN to a token of that server", _UNAUTHORIZED_DELAY)
        return Retry(reason, _retry_after(response.headers.get("Retry-After")))


def _read(response: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
    """The answer's body, within the deadline even when it comes a byte at a time, and not more than could be an answer."""
    answer = bytearray()
    while chunk := response.read1(_LONGEST_ANSWER):
        answer += chunk
        if len(answer) > _LONGEST_ANSWER:
            raise urllib3.exceptions.HTTPError(f"the answer is longer than {_LONGEST_ANSWER} bytes")
        if time.monotonic() > deadline:
            raise urllib3.exceptions.HTTPError("the answer did not end in time")
    return bytes(answer)


def _accepted(request: Request, content_type: str, answer: bytes) -> Outcome:
    """What a 200 means: only OTLP's own answer is an acceptance, a proxy's login page is not."""
    if content_type.partition(";")[0].strip().lower() != _CONTENT_TYPE:
        return Retry(f"answered 200 with {content_type or 'no content type'} instead of OTLP; is the endpoint right?")
    try:
        if request.signal == "metrics":
            metrics = ExportMetricsServiceResponse.FromString(answer).partial_success
            return Accepted(metrics.rejected_data_points, metrics.error_message)
        logs = ExportLogsServiceResponse.FromString(answer).partial_success
        return Accepted(logs.rejected_log_records, logs.error_message)
    except DecodeError:
        return Retry("answered 200 with a body that is not OTLP; is the endpoint right?")


def _retry_after(value: str | None) -> float | None:
    """Seconds from a `Retry-After` header: a number, or an HTTP date (RFC 9110, 10.2.3); None if it is neither."""
    if value is None:
        return None
    try:
        return max(0.0, float(int(value)))
    except OverflowError:
        return None
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _describe(error: BaseException) -> str:
    """The innermost cause, which is what people can act on (`Connection refused`), without the pool's repr."""
    while True:
        inner = getattr(error, "reason", None) or error.__cause__
        if not isinstance(inner, BaseException):
            break
        error = inner
    text = str(error)
    return text.rpartition(": ")[2] if "object at 0x" in text else text
