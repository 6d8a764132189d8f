"""Connections within limits: how many there are, how long a client may take to send and to read, and what is a request."""

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

from tensormeter.server.http.logs import Seldom
from tensormeter.server.limits.admission import Admission, Waiting
from tensormeter.server.limits.framing import BoundedConnection

__all__ = ["PIECE", "LimitedProtocol", "limited_protocol"]

PIECE: Final = 1 << 15
"""Bytes of an answer that are sent at once. While more than so many wait in a connection's buffer, no more of it is made."""

_UNSENT: Final = 1 << 17
"""Bytes that the system takes beyond what is under way."""

_MAX_HEAD: Final = 1 << 16
"""Bytes of a request's head, uvicorn's own default."""

_LOOK: Final = 1.0
"""Seconds between two looks at what clients have read."""

_UNREAD: Final = 3.0
"""Seconds without progress after which an answer counts as not being read."""

_NUMBER: Final = re.compile(rb"[0-9]{1,20}")
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")

_log: Final = logging.getLogger(__name__)


class _RequestError(h11.RemoteProtocolError):
    """What came is no request that this server takes."""


class _Framing(BoundedConnection):
    """HTTP/1.1 that refuses requests whose length two programs could understand differently (RFC 9112, 6.3 and 11.2).

    Attributes:
        written: Bytes of answers so far.
        problem: What was wrong with the last request.
        is_ambiguous: Whether two programs could understand it differently.
    """

    written = 0
    problem = ""
    is_ambiguous = False

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        """See h11; `send` calls this."""
        parts = super().send_with_data_passthrough(event)
        self.written += sum(map(len, parts or ()))
        return parts

    def next_event(self) -> Any:
        """See h11. Raises RemoteProtocolError."""
        head = self.trailing_data[0] if self.their_state is h11.IDLE else b""
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                _check_request(event, head)
        except h11.RemoteProtocolError as error:
            self.problem = str(error).partition(":")[0]  # without what was sent
            self.is_ambiguous = isinstance(error, _RequestError)
            raise
        return event


def _check_request(request: h11.Request, data: bytes) -> None:
    if not request.http_version.startswith(b"1."):
        raise _RequestError("HTTP/2 is not served here", error_status_hint=505)
    end = _HEAD_END.search(data)
    lines = data[: end.start() if end else None].split(b"\n")[1:]
    if any(line[:1] in (b" ", b"\t") for line in lines):
        raise _RequestError("a header goes on in the next line")
    headers = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if lengths and codings:
        raise _RequestError("there is both Content-Length and Transfer-Encoding")
    if len(lengths) > 1 or (lengths and not _NUMBER.fullmatch(lengths[0])):
        raise _RequestError("Content-Length is not one number")
    if codings and request.http_version != b"1.1":
        raise _RequestError("there is Transfer-Encoding in HTTP/1.0")
    if codings and [coding.lower() for coding in codings] != [b"chunked"]:
        raise _RequestError("Transfer-Encoding is not chunked")


def limited_protocol(max_connections: int, header_timeout: float, send_timeout: float) -> type["LimitedProtocol"]:
    """Uvicorn's HTTP/1.1, of which many connections share limits.

    Args:
        max_connections: Beyond so many, the oldest of those that wait for their client gives way to a new one, of the address
            that has the most of them. If none waits, the new one is answered 503 and closed.
        header_timeout: Seconds from a connection's beginning, or from the first byte of a further request, until its headers
            must be complete; then it is answered 408 and closed. A client that sends a byte now and then gets no longer.
        send_timeout: Seconds without any progress after which a client that does not read its answer is given up.
    """
    uvicorns = logging.getLogger("uvicorn.error")
    if _is_not_said_here not in uvicorns.filters:
        uvicorns.addFilter(_is_not_said_here)
    limits = _Limits(Admission(max_connections), header_timeout, send_timeout)
    return type("ServerProtocol", (LimitedProtocol,), {"limits": limits})


class _Limits:
    """What the connections of a server share, and the look at them."""

    def __init__(self, admission: Admission, header_timeout: float, send_timeout: float) -> None:
        self.admission = admission
        self.header_timeout = header_timeout
        self.send_timeout = send_timeout
        self.unread = Seldom(_log)
        self.invalid = Seldom(_log)
        self.ambiguous = Seldom(_log)
        self.grpc = Seldom(_log, 3600)
        self._looking = False

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look at all connections now and then, as long as there are any."""
        if not self._looking:
            self._looking = True
            loop.call_later(_LOOK, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._looking = False
        now = loop.time()
        for connection in self.admission:
            if isinstance(connection, LimitedProtocol):  # and no handshake
                connection.look(now)
        if len(self.admission):
            self.watch(loop)


class LimitedProtocol(H11Protocol):
    """One connection; see `limited_protocol`."""

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
        self._through = 0
        self._moved = 0.0
        self._is_stalled = False
        self._is_unread = False

    @property
    def address(self) -> str:
        """Address of the other side: a client, or a proxy."""
        return self.client[0] if self.client else ""

    @property
    def stalled(self) -> float:
        """Seconds for which nothing of what waits to be sent has been read; 0 if nothing waits."""
        return max(self.loop.time() - self._moved, 0.0) if self._is_stalled else 0.0

    @property
    def closing(self) -> bool:
        """Whether nothing more can be sent."""
        return self.transport.is_closing()

    def abort(self) -> None:
        """Close without waiting for anything to be read."""
        self.limits.admission.discard(self)
        self.transport.abort()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=PIECE)
        connected = transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):  # not on every system
            # Else the system takes megabytes of an answer that may never be read.
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
        self._moved = self.loop.time()
        if self.limits.admission.admit(self, self.address, self._moved):
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
                self._arm()  # a further request, or the rest of a body that nobody waits for
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
        """Refuse what came, and everything that follows."""
        refused = self.conn.problem.startswith("HTTP/2")
        if refused:
            self.limits.grpc.warning(
                "tensormeter: a client speaks HTTP/2 (gRPC?), the last one from %s: gRPC is not served here; "
                "use OTLP/HTTP on /v1/metrics and /v1/logs, or a Collector in between",
                self.address,
            )
        elif self.conn.is_ambiguous:
            self.limits.ambiguous.warning("tensormeter: refused a request from %s: %s", self.address, self.conn.problem)
        else:
            self.limits.invalid.warning(msg)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            status, text = ("505 HTTP Version Not Supported", _NO_GRPC) if refused else ("400 Bad Request", "")
            self.transport.write(_answer(status, text or f"invalid HTTP request: {self.conn.problem}\n"))
        self._close()

    def look(self, now: float) -> None:
        """See whether the client has read anything since the last look, and give it up if it has not for too long."""
        waiting = self.transport.get_write_buffer_size() + _unacknowledged(self.transport.get_extra_info("socket"))
        through = self.conn.written - waiting
        if not waiting or through != self._through:
            self._through, self._moved = through, now
        self._is_stalled = waiting > 0 and now > self._moved
        if not self._is_stalled:
            if self._is_unread:
                self._is_unread = False
                self._note(None if self.cycle is not None and not self.cycle.response_complete else Waiting.IDLE)
        elif self.stalled > self.limits.send_timeout:
            self.limits.unread.warning(
                "tensormeter: gave up a connection from %s: nothing of an answer was read for %g s",
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
            case Waiting.BODY:  # it may be answered before it is complete, by a stream for instance
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
        """Say nothing: a server may ignore `Upgrade` (RFC 9110, 7.8), and clients that speak HTTP/2 as well send it often."""

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

    def _refuse(self, answer: bytes) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(answer)
        self._close()

    def _close(self) -> None:
        self._disarm()
        self.transport.close()


def _is_not_said_here(record: logging.LogRecord) -> bool:
    """Without uvicorn's line for each invalid request: `LimitedProtocol` says it once a minute."""
    return record.name != "uvicorn.error" or record.msg != "Invalid HTTP request received."


def _unacknowledged(connected: Any) -> int:
    """Bytes in the system's buffer that the other side has not acknowledged; 0 where that cannot be known."""
    if sys.platform != "linux":
        return 0
    try:
        found: int = struct.unpack("i", fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]
    except (OSError, ValueError, AttributeError):
        return 0
    return found


def _answer(status: str, text: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, "Connection: close", "Content-Type: text/plain"]
    body = text.encode("ascii", "replace")
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


_NO_GRPC: Final = "gRPC is not served here; use OTLP/HTTP on /v1/metrics and /v1/logs, or a Collector in between\n"

_BUSY: Final = _answer("503 Service Unavailable", "too many connections\n", "Retry-After: 5")

_SLOW: Final = _answer("408 Request Timeout", "the headers took too long\n")
