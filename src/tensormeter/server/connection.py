"""Connections within limits: how many there are, and how long one may take to say what it wants."""

import asyncio
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["limited_protocol"]

_BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 21\r\n\r\ntoo many connections\n"
)

_SLOW: Final = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 25\r\n\r\nthe headers took too long"
)


def limited_protocol(max_connections: int, header_timeout: float) -> type[H11Protocol]:
    """Uvicorn's HTTP/1.1 with two limits that it lacks.

    Args:
        max_connections: Beyond so many, a new one is answered 503 before it has sent anything, and closed.
        header_timeout: Seconds from a connection's beginning, or from the first byte of a further request, until its headers
            must be complete; then it is answered 408 and closed. A client that sends a byte now and then gets no longer.
    """

    class LimitedProtocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                self._refuse(_BUSY)
            else:
                self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._disarm()
            elif self._deadline is None and not self.transport.is_closing():
                self._arm()  # a further request, or the rest of a body that nobody waits for

        def _arm(self) -> None:
            self._deadline = self.loop.call_later(header_timeout, self._expire)

        def _disarm(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _expire(self) -> None:
            if self.conn.their_state is h11.IDLE:
                self.transport.write(_SLOW)
            self.transport.close()

        def _refuse(self, answer: bytes) -> None:
            self.transport.write(answer)
            self.transport.close()

    return LimitedProtocol
