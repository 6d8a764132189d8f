"""Limits on connections: their number, the time that clients may take, and the validity of requests."""

import asyncio
import contextlib
import fcntl
import logging
import re
import socket
import struct
import sys
import termios
from typing import Any, Final

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from tensormeter.server.http.logs import RateLimitedLog
from tensormeter.server.limits.admission import Admission, Waiting
from tensormeter.server.limits.body_pieces import BoundedConnection

__all__ = ["PIECE", "LimitedProtocol", "limited_protocol"]

PIECE: Final = 1 << 15
"""Maximum number of bytes of a response to send at once.

While the connection's buffer holds more than this, the server produces no more data.
"""

_UNSENT: Final = 1 << 17
"""Maximum number of unsent bytes that the system buffers per connection."""

_MAX_HEAD: Final = 1 << 16
"""Maximum size of a request's headers in bytes (uvicorn's default)."""

_POLL_INTERVAL: Final = 1.0
"""Interval, in seconds, between checks of how much clients have read."""

_UNREAD: Final = 3.0
"""Seconds without progress after which a response counts as unread."""

_NUMBER: Final = re.compile(rb"[0-9]{1,20}")
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")

_log: Final = logging.getLogger(__name__)


class _RequestError(h11.RemoteProtocolError):
    """The server refuses a request that h11 would accept."""


class _Framing(BoundedConnection):
    """State machine for HTTP/1.1 that also refuses HTTP/2, and requests with an ambiguous length (RFC 9112, 6.3 and 11.2).

    It limits the size of the headers even if they arrive at once. h11 limits only incomplete headers.

    Attributes:
        written: Number of response bytes so far.
        problem: Description of the error in the last request; "" if the request was valid.
        is_ambiguous: Whether h11 would have accepted the request, but this class refused it.
    """

    written = 0
    problem = ""
    is_ambiguous = False

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        """See h11. `send` calls this method."""
        parts = super().send_with_data_passthrough(event)
        self.written += sum(map(len, parts or ()))
        return parts

    def next_event(self) -> Any:
        """See h11. Raise RemoteProtocolError for an invalid request."""
        head = self.trailing_data[0] if self.their_state is h11.IDLE else b""
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                _check_request(event, head, self._max_incomplete_event_size)
        except h11.RemoteProtocolError as error:
            self.problem = str(error).partition(":")[0]  # omit the client's data
            self.is_ambiguous = isinstance(error, _RequestError)
            raise
        return event


def _check_request(request: h11.Request, data: bytes, max_head: int) -> None:
    if not request.http_version.startswith(b"1."):
        raise _RequestError("HTTP/2 is not supported", error_status_hint=505)
    end = _HEAD_END.search(data)
    if end is not None and end.end() > max_head:
        raise _RequestError(f"the request headers are larger than {max_head} bytes")
    lines = data[: end.start() if end else None].split(b"\n")[1:]
    if any(line[:1] in (b" ", b"\t") for line in lines):
        raise _RequestError("a header continues on the next line")
    headers = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if lengths and codings:
        raise _RequestError("the request has both Content-Length and Transfer-Encoding")
    if len(lengths) > 1 or (lengths and not _NUMBER.fullmatch(lengths[0])):
        raise _RequestError("Content-Length is not a single number")
    if codings and request.http_version != b"1.1":
        raise _RequestError("Transfer-Encoding needs HTTP/1.1")
    if codings and [coding.lower() for coding in codings] != [b"chunked"]:
        raise _RequestError("Transfer-Encoding is not chunked")


def limited_protocol(max_connections: int, header_timeout: float, send_timeout: float) -> type["LimitedProtocol"]:
    """Create a class for uvicorn's HTTP/1.1 connections, which share limits.

    Args:
        max_connections: Maximum number of connections. At this limit, a new connection can evict one that waits for its
            client (see `Admission`). If none can be evicted, the new connection gets 503 and is closed.
        header_timeout: Maximum time to receive a request's headers in seconds, measured from the start of the
            connection or the first byte of a further request. After that, the client gets 408 and the connection is
            closed, even if the client is still sending single bytes.
        send_timeout: Seconds without progress after which a connection is closed because its client is not reading the
            response.
    """
    uvicorn_log = logging.getLogger("uvicorn.error")
    if _is_logged_by_uvicorn not in uvicorn_log.filters:
        uvicorn_log.addFilter(_is_logged_by_uvicorn)
    limits = _Limits(Admission(max_connections), header_timeout, send_timeout)
    return type("ServerProtocol", (LimitedProtocol,), {"limits": limits})


class _Limits:
    """State that a server's connections share, and a timer that checks the connections."""

    def __init__(self, admission: Admission, header_timeout: float, send_timeout: float) -> None:
        self.admission = admission
        self.header_timeout = header_timeout
        self.send_timeout = send_timeout
        self.unread = RateLimitedLog(_log)
        self.invalid = RateLimitedLog(_log)
        self.ambiguous = RateLimitedLog(_log)
        self.http2 = RateLimitedLog(_log, 3600)
        self._is_scheduled = False

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Check all connections periodically while there are any."""
        if not self._is_scheduled:
            self._is_scheduled = True
            loop.call_later(_POLL_INTERVAL, self._check_connections, loop)

    def _check_connections(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_scheduled = False
        now = loop.time()
        for connection in self.admission:
            if isinstance(connection, LimitedProtocol):  # not a handshake
                connection.check_progress(now)
        if len(self.admission):
            self.watch(loop)


class LimitedProtocol(H11Protocol):
    """A connection with the limits of `limited_protocol`."""

    limits: _Limits
    conn: _Framing

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state | {"connection": self}, _loop)
        self.conn = _Framing(h11.SERVER, config.h11_max_incomplete_event_size or _MAX_HEAD)
        self._deadline: asyncio.TimerHandle | None = None
        self._acknowledged = 0
        self._progressed = 0.0
        self._is_stalled = False
        self._is_unread = False

    @property
    def address(self) -> str:
        """Address of the peer, which is a client or a proxy."""
        return self.client[0] if self.client else ""

    @property
    def stalled(self) -> float:
        """Seconds since the client last read any of its pending data; 0 if no data is pending."""
        return max(self.loop.time() - self._progressed, 0.0) if self._is_stalled else 0.0

    @property
    def closing(self) -> bool:
        """Whether the connection is closing, so that no more data can be sent."""
        return self.transport.is_closing()

    def abort(self) -> None:
        """Close the connection immediately, without waiting for the client to read."""
        self.limits.admission.discard(self)
        self.transport.abort()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=PIECE)
        connected = transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):  # some systems lack this option
            # Otherwise, the system might buffer megabytes of a response that is never read.
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
        self._progressed = self.loop.time()
        if self.limits.admission.admit(self, self.address, self._progressed):
            self._arm()
            self.limits.watch(self.loop)
        else:
            self._refuse(_BUSY)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self.limits.admission.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._disarm()
            self._note(Waiting.BODY if self.cycle.more_body else None)
        else:
            if self._deadline is None:
                self._arm()  # waits for a further request, or for the rest of a body that no handler reads
            self._note(Waiting.HEAD)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing() or not self.cycle.response_complete:
            return
        if self.conn.their_state in (h11.IDLE, h11.DONE):
            self._note(Waiting.IDLE)
        else:
            self._note(Waiting.HEAD)
            if self._deadline is None:
                self._arm()

    def send_400_response(self, msg: str) -> None:
        """Refuse an invalid request and close the connection."""
        is_http2 = self.conn.problem.startswith("HTTP/2")
        if is_http2:
            self.limits.http2.warning(
                "tensormeter: refused an HTTP/2 client, probably gRPC, from %s: gRPC is not supported; "
                "use OTLP/HTTP on /v1/metrics and /v1/logs, or a Collector in between",
                self.address,
            )
        elif self.conn.is_ambiguous:
            self.limits.ambiguous.warning("tensormeter: refused a request from %s: %s", self.address, self.conn.problem)
        else:
            self.limits.invalid.warning(
                "tensormeter: invalid HTTP request from %s: %s", self.address, self.conn.problem
            )
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            status, text = ("505 HTTP Version Not Supported", _NO_GRPC) if is_http2 else ("400 Bad Request", "")
            self.transport.write(_response(status, text or f"invalid HTTP request: {self.conn.problem}\n"))
        self._close()

    def check_progress(self, now: float) -> None:
        """Check whether the client has read anything since the last check. If it is too slow, close the connection."""
        waiting = self.transport.get_write_buffer_size() + _unacknowledged(self.transport.get_extra_info("socket"))
        acknowledged = self.conn.written - waiting
        if not waiting or acknowledged != self._acknowledged:
            self._acknowledged, self._progressed = acknowledged, now
        self._is_stalled = waiting > 0 and now > self._progressed
        if not self._is_stalled:
            if self._is_unread:
                self._is_unread = False
                self._note(None if self.cycle is not None and not self.cycle.response_complete else Waiting.IDLE)
        elif self.stalled > self.limits.send_timeout:
            self.limits.unread.warning(
                "tensormeter: closed a connection from %s: the client did not read from a response for %g s",
                self.address,
                self.limits.send_timeout,
            )
            self.abort()
        elif self.stalled > _UNREAD:
            self._is_unread = True
            self._note(Waiting.READING)

    def waits(self, waiting: Waiting) -> bool:
        """See `Admitted`."""
        match waiting:
            case Waiting.BODY:  # some responses, such as streams, start before the body is complete
                return not self.cycle.response_started
            case Waiting.READING:
                return self._is_stalled
            case _:
                return True

    def give_way(self) -> None:
        """See `Admitted`."""
        is_new = self.cycle is None or bool(self.conn.trailing_data[0])
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        elif self.conn.our_state is h11.SEND_RESPONSE or (self.conn.our_state is h11.IDLE and is_new):
            self._refuse(_BUSY)
        else:
            self._close()

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing. Clients that support HTTP/2 often send `Upgrade`, which a server may ignore (RFC 9110, 7.8)."""

    def _note(self, waiting: Waiting | None) -> None:
        self.limits.admission.note(self, waiting, self.loop.time())

    def _arm(self) -> None:
        self._deadline = self.loop.call_later(self.limits.header_timeout, self._expire)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.write(_SLOW)
        self._close()

    def _refuse(self, response: bytes) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(response)
        self._close()

    def _close(self) -> None:
        self._disarm()
        self.transport.close()


def _is_logged_by_uvicorn(record: logging.LogRecord) -> bool:
    """Filter out uvicorn's line for each invalid request. `LimitedProtocol` logs at most one such line per minute."""
    return record.name != "uvicorn.error" or record.msg != "Invalid HTTP request received."


def _unacknowledged(connected: Any) -> int:
    """Return the number of buffered bytes that the peer has not acknowledged; 0 if the system does not report them."""
    if sys.platform != "linux":
        return 0
    try:
        size: int = struct.unpack("i", fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]
    except (OSError, ValueError, AttributeError):
        return 0
    return size


def _response(status: str, text: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, "Connection: close", "Content-Type: text/plain"]
    body = text.encode("ascii", "replace")
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


_NO_GRPC: Final = "gRPC is not supported; use OTLP/HTTP on /v1/metrics and /v1/logs, or a Collector in between\n"

_BUSY: Final = _response("503 Service Unavailable", "too many connections; retry later\n", "Retry-After: 5")

_SLOW: Final = _response("408 Request Timeout", "the request headers did not arrive in time\n")
