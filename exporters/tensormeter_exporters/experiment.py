"""The experiment server, over OTLP/HTTP with protobuf and gzip.

Any OTLP/HTTP receiver understands these requests; the experiment server also understands the header
`Tensormeter-Batch-Id`, by which it knows a request that it has stored before.
"""

import contextlib
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Final

import urllib3
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from tensormeter.exporter import Accepted, ExporterConfig, Outcome, Rejected, Request, Retry, TooLarge, Unauthorized

__all__ = ["ExperimentExporter"]

_CONTENT_TYPE: Final = "application/x-protobuf"
_LONGEST_ANSWER: Final = 1 << 16

# The request itself is wrong, and will be so the next time.
_PERMANENT: Final = frozenset({400, 409, 415, 422})


class _Connections:
    """The sockets that are open, so that a deadline can end what is going on in one of them.

    A timeout of urllib3 holds for each read of the socket by itself; headers that come a byte a second would take hours.
    """

    def __init__(self) -> None:
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.expired = False
        """Whether the deadline has ended the present call, or the last one."""
        self._call = 0

    def note(self, opened: socket.socket) -> None:
        self._sockets.add(opened)
        if self.expired:
            self._shut(opened)

    @contextlib.contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """Shut every connection that is open, or opened, `seconds` after the block was entered and before it is left."""
        self.expired = False
        self._call += 1
        timer = threading.Timer(seconds, self._expire, (self._call,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _expire(self, call: int) -> None:
        if call != self._call:  # it had ended, and another has begun
            return
        self.expired = True
        for opened in list(self._sockets):
            self._shut(opened)

    @staticmethod
    def _shut(opened: socket.socket) -> None:
        with contextlib.suppress(OSError):
            # Of the plain socket also under TLS, whose own shutdown is not safe beside a read.
            socket.socket.shutdown(opened, socket.SHUT_RDWR)


def _pool(connections: _Connections) -> urllib3.PoolManager:
    class Plain(urllib3.connection.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            connections.note(self.sock)

    class Secure(urllib3.connection.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            connections.note(self.sock)

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    manager = urllib3.PoolManager(num_pools=1, maxsize=1, retries=False)
    manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return manager


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
        self._connections = _Connections()
        self._pool = _pool(self._connections)

    def export(self, request: Request) -> Outcome:
        with self._connections.deadline(self._timeout):
            return self._export(request)

    def _export(self, request: Request) -> Outcome:
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
            late = self._connections.expired or time.monotonic() >= deadline
            return Retry(f"{self._url}: {'the answer did not end in time' if late else _describe(error)}")
        if self._connections.expired or time.monotonic() >= deadline:  # what ended the headers was the deadline
            return Retry(f"{self._url}: the answer did not end in time")
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
            return Unauthorized(f"{reason}; set TENSORMETER_TOKEN to a token of that server")
        if status == 413:
            return TooLarge(reason)
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
