"""HTTP client for OTLP: one connection, and a deadline for each request as a whole."""

import contextlib
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Final

import urllib3

from tensormeter.exporter import Retry
from tensormeter_exporters.otlp.answers import PROTOBUF, Answer

__all__ = ["OtlpPost"]

_LONGEST_ANSWER: Final = 4 << 20
"""Maximum bytes of a response: the same as for gRPC. A partial success may name many points, and an error may be a long page."""

_PIECE: Final = 1 << 16

_OURS: Final = "tensormeter-"


class OtlpPost:
    """Sends requests to one server. Used by one thread. It follows no redirects, which would send the headers elsewhere."""

    def __init__(self, timeout: float, headers: Mapping[str, str], context: ssl.SSLContext | None = None) -> None:
        """
        Args:
            timeout: Maximum seconds of a request, until the end of its response.
            headers: Headers of every request, in addition to OTLP's. They may contain secrets.
            context: TLS context; None to verify servers with the system's authorities.
        """
        self._timeout = timeout
        self._headers = {
            "content-type": PROTOBUF,
            "user-agent": f"tensormeter/{version('tensormeter')}",
            **{name.lower(): value for name, value in headers.items()},
        }
        self._connections = _Connections()
        self._pool = _pool(self._connections, context)

    def send(
        self, url: str, body: bytes, headers: Mapping[str, str], *, timeout: float | None = None
    ) -> Answer | Retry:
        """POST a body. Blocks at most for the timeout, which can be shorter for this request.

        Returns:
            The response of any status; `Retry` if it did not arrive in time.
        """
        return self._request("POST", url, body, {**self._headers, **headers}, timeout)

    def get(self, url: str) -> Answer | Retry:
        """GET a URL with the headers of the target. Otherwise like `send`."""
        kept = {name: value for name, value in self._headers.items() if not name.startswith("content-")}
        return self._request("GET", url, None, kept, None)

    def _request(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout: float | None
    ) -> Answer | Retry:
        seconds = self._timeout if timeout is None else min(timeout, self._timeout)
        deadline = time.monotonic() + seconds
        with self._connections.deadline(seconds):
            try:
                response = self._pool.request(
                    method,
                    url,
                    body=body,
                    headers=headers,
                    timeout=urllib3.Timeout(total=seconds),
                    redirect=False,
                    preload_content=False,
                )
                try:
                    answer, whole = _read(response, deadline)
                except BaseException:
                    response.close()
                    raise
                if whole:
                    response.release_conn()
                else:
                    response.close()  # the rest of the response is unread, so the connection cannot be reused
            except (urllib3.exceptions.HTTPError, OSError) as error:
                late = self._connections.expired or time.monotonic() >= deadline
                return Retry(f"{url}: {'the answer did not end in time' if late else _describe(error)}")
            if self._connections.expired or time.monotonic() >= deadline:  # the deadline ended the headers
                return Retry(f"{url}: the answer did not end in time")
        if not whole and 200 <= response.status < 300:
            return Retry(f"{url}: the answer is longer than {_LONGEST_ANSWER} bytes; is the endpoint right?")
        return Answer(
            url,
            response.status,
            response.reason or "",
            response.headers.get("Content-Type", ""),
            answer,
            _retry_after(response.headers.get("Retry-After")),
            {name.lower(): value for name, value in response.headers.items() if name.lower().startswith(_OURS)},
        )

    def abort(self) -> None:
        """Abort the current request, if any, as if it had timed out. Any thread."""
        self._connections.expire()

    def close(self) -> None:
        self._pool.clear()


class _Connections:
    """The open sockets, so that a deadline can interrupt any of them.

    A timeout of urllib3 applies to each read of the socket; headers that arrive one byte a second would take hours.
    """

    def __init__(self) -> None:
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.expired = False
        """Whether the deadline has interrupted the current or the last call."""
        self._call = 0

    def note(self, opened: socket.socket) -> None:
        self._sockets.add(opened)
        if self.expired:
            self._shut(opened)

    @contextlib.contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """Shut down all connections, also new ones, if the block takes longer than `seconds`."""
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
        if call == self._call:  # otherwise the call had ended and another one has begun
            self.expire()

    def expire(self) -> None:
        self.expired = True
        for opened in list(self._sockets):
            self._shut(opened)

    @staticmethod
    def _shut(opened: socket.socket) -> None:
        with contextlib.suppress(OSError):
            # The plain socket also under TLS: the shutdown of TLS is not safe during a read.
            socket.socket.shutdown(opened, socket.SHUT_RDWR)


def _pool(connections: _Connections, context: ssl.SSLContext | None) -> urllib3.PoolManager:
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

    manager = urllib3.PoolManager(num_pools=1, maxsize=1, retries=False, ssl_context=context)
    manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return manager


def _read(response: urllib3.BaseHTTPResponse, deadline: float) -> tuple[bytes, bool]:
    """Read the body within the deadline, even if it arrives byte by byte. Returns at most `_LONGEST_ANSWER` bytes, and whether they
    are all.
    """
    answer = bytearray()
    while chunk := response.read1(_PIECE):
        answer += chunk
        if len(answer) > _LONGEST_ANSWER:
            return bytes(answer[:_LONGEST_ANSWER]), False
        if time.monotonic() > deadline:
            raise urllib3.exceptions.HTTPError("the answer did not end in time")
    return bytes(answer), True


def _retry_after(value: str | None) -> float | None:
    """Seconds of a `Retry-After` header: a number or an HTTP date (RFC 9110, 10.2.3); None if it is neither."""
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
    """Return the innermost cause, which people can act on (`Connection refused`), without the pool's repr."""
    while True:
        inner = getattr(error, "reason", None) or error.__cause__
        if not isinstance(inner, BaseException):
            break
        error = inner
    text = str(error)
    return text.rpartition(": ")[2] if "object at 0x" in text else text
