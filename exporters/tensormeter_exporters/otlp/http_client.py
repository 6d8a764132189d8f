"""HTTP client for OTLP, with one connection and a deadline for each whole request."""

import contextlib
import math
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
"""Maximum size of a response in bytes, the same as for gRPC.

A partial success may list many points, and an error may be a long web page.
"""

_PIECE: Final = 1 << 16

_KEPT: Final = ("tensormeter-", "accept-encoding")
"""Beginnings of the names of headers to return."""


class OtlpPost:
    """Client for requests to one server.

    Not thread-safe, except for `abort`. Redirects are not followed, because they would send the headers elsewhere.
    """

    def __init__(self, timeout: float, headers: Mapping[str, str], context: ssl.SSLContext | None = None) -> None:
        """
        Args:
            timeout: Maximum duration of a request in seconds, including the whole response.
            headers: Headers to add to those of OTLP in every request. They may contain secrets.
            context: TLS context; None to verify servers with the system's certificate authorities.
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
        """Send a POST request. Blocks for at most the timeout, which can be shortened for this request.

        Returns:
            Response with any status, or `Retry` if no complete response arrived in time.
        """
        return self._request("POST", url, body, {**self._headers, **headers}, timeout)

    def get(self, url: str) -> Answer | Retry:
        """Send a GET request with the configured headers. See `send` for the timeout and the result."""
        kept = {name: value for name, value in self._headers.items() if not name.startswith("content-")}
        return self._request("GET", url, None, kept, None)

    def _request(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout: float | None
    ) -> Answer | Retry:
        seconds = self._timeout if timeout is None else min(timeout, self._timeout)
        address = url.partition("?")[0]  # for messages, in which the parameters only hide the reason
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
                    response.close()  # part of the response is unread, so the connection cannot be reused
            except (urllib3.exceptions.HTTPError, OSError) as error:
                late = self._connections.expired or time.monotonic() >= deadline
                return Retry(f"{address}: {'the response did not arrive in time' if late else _describe(error)}")
            if self._connections.expired or time.monotonic() >= deadline:  # truncated headers can look complete
                return Retry(f"{address}: the response did not arrive in time")
        if not whole and 200 <= response.status < 300:
            return Retry(f"{address}: the response is longer than {_LONGEST_ANSWER} bytes; check the endpoint")
        return Answer(
            address,
            response.status,
            response.reason or "",
            response.headers.get("Content-Type", ""),
            answer,
            _retry_after(response.headers.get("Retry-After")),
            {name.lower(): value for name, value in response.headers.items() if name.lower().startswith(_KEPT)},
        )

    def abort(self) -> None:
        """Abort the current request, if any, as if it had timed out. Can be called on any thread."""
        self._connections.expire()

    def close(self) -> None:
        self._pool.clear()


class _Connections:
    """Open connections, which a deadline can interrupt.

    A urllib3 timeout applies to each read from the socket, so headers that arrive one byte per second could take hours.
    A thread watches the deadlines of many calls, and ends when there are no more calls.
    """

    def __init__(self) -> None:
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.expired = False
        """Whether the deadline has interrupted the current or most recent call."""
        self._changing = threading.Lock()
        self._calls = 0
        self._due: float | None = None
        """Deadline of the current call; None between calls."""
        self._watches_at = math.inf
        """Time at which the thread next checks the deadline; infinite if there is no thread."""

    def note(self, opened: socket.socket) -> None:
        self._sockets.add(opened)
        if self.expired:
            self._shut(opened)

    @contextlib.contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """Shut down all connections, including new ones, if the block takes longer than `seconds`."""
        self.expired = False
        with self._changing:
            self._calls += 1
            self._due = time.monotonic() + seconds
            if self._due < self._watches_at:
                self._start_watching(self._due, seconds)
        try:
            yield
        finally:
            with self._changing:
                self._due = None

    def _start_watching(self, at: float, period: float) -> None:
        thread = threading.Thread(target=self._watch, args=(at, period), name="tensormeter-deadline", daemon=True)
        with contextlib.suppress(
            RuntimeError
        ):  # at exit, where no thread can be started, each read still has its timeout
            thread.start()
            self._watches_at = at  # an earlier thread ends at its next check

    def _watch(self, at: float, period: float) -> None:
        """Check the deadline at a time, and then at the deadlines of later calls, until a `period` without calls."""
        wait = threading.Event().wait
        calls = -1
        while True:
            wait(max(0.0, at - time.monotonic()))
            with self._changing:
                if self._watches_at != at:  # another thread has taken over
                    return
                if self._due is None and self._calls == calls:
                    self._watches_at = math.inf
                    return
                calls, now = self._calls, time.monotonic()
                if self._due is not None and self._due <= now:
                    self._due = None
                    self.expire()
                self._watches_at = at = now + period if self._due is None else self._due

    def expire(self) -> None:
        self.expired = True
        for opened in list(self._sockets):
            self._shut(opened)

    @staticmethod
    def _shut(opened: socket.socket) -> None:
        with contextlib.suppress(OSError):
            # Shut down the plain socket even under TLS, because a TLS shutdown is not safe during a read.
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
    """Read the body until the deadline, even if it arrives byte by byte.

    Return at most `_LONGEST_ANSWER` bytes, and whether they are the whole body.
    """
    answer = bytearray()
    while chunk := response.read1(_PIECE):
        answer += chunk
        if len(answer) > _LONGEST_ANSWER:
            return bytes(answer[:_LONGEST_ANSWER]), False
        if time.monotonic() > deadline:
            raise urllib3.exceptions.HTTPError("the response did not arrive in time")
    return bytes(answer), True


def _retry_after(value: str | None) -> float | None:
    """Convert a `Retry-After` header (a number or an HTTP date; RFC 9110, 10.2.3) to seconds; None if it is invalid."""
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
    """Describe the innermost cause, such as `Connection refused`, without urllib3's internal details."""
    while True:
        inner = getattr(error, "reason", None) or error.__cause__
        if not isinstance(inner, BaseException):
            break
        error = inner
    text = str(error)
    return text.rpartition(": ")[2] if "object at 0x" in text else text
